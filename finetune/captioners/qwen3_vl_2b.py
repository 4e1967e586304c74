"""Qwen3-VL 2B: follows instructions about what to leave out, where a GPU has six gigabytes free.

Apache 2.0. 2.128 billion parameters (counted by others on the tensors of the published files), 4.3 GB in 16 bits.
"""

from finetune.captioners.vlm import VisionLanguage

CAPTIONER = VisionLanguage(
    id="qwen3-vl-2b",
    title="Qwen3-VL 2B Instruct",
    source="Qwen/Qwen3-VL-2B-Instruct",
    licence="Apache 2.0",
    gib=3.96,
)
