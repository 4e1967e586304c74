"""LoRA files with the layer names of the published checkpoints, which ComfyUI and others read."""
