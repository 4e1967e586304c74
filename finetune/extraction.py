"""From a full finetune to a LoRA: layer by layer against the base on disk, weighted by what the layers see."""
