"""Push a finished LoRA to the Hub, if its owner asks for it. A token is used once and kept nowhere."""
