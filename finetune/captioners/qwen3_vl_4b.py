"""Qwen3-VL 4B: the best of those that are chosen by themselves, where a GPU has ten gigabytes free.

Apache 2.0. 4.44 billion parameters, 8.9 GB in 16 bits: counted on transformers' class with the published sizes. It is
also the text encoder of FLUX.3; `own.py` uses that one where it is here already.
"""

from finetune.captioners.vlm import VisionLanguage

CAPTIONER = VisionLanguage(
    id="qwen3-vl-4b",
    title="Qwen3-VL 4B Instruct",
    source="Qwen/Qwen3-VL-4B-Instruct",
    licence="Apache 2.0",
    gib=8.27,
)
