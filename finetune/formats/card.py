"""The model card (README.md) of a LoRA, ready for the Hub."""
