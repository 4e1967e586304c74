"""Fine-tune FLUX image models into LoRAs, on your own machine."""

__version__ = "0.1.0"
