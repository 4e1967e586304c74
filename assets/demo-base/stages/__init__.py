"""The steps that build the demo base, in order: pictures, vae, text, transformer, captioner, package."""
