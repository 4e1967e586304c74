"""Build the demo base from public emoji packages: `python assets/demo-base/build.py --work FOLDER`.

Needs npm for the pictures and the packages of requirements.txt. A stopped build goes on where it was.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from stages import captioner, measure, package, text, transformer, vae


def main() -> None:
    """Run all stages in order, then write the folder, the contact sheet and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("demo-base-build"), help="folder for downloads and checkpoints"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that receives the base")
    parser.add_argument("--steps", type=int, default=transformer.STEPS, help="training steps of the transformer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="processor threads")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    cache = asked.work / "cache"

    autoencoder = vae.train(asked.work, cache)
    tokenizer, encoder = text.train(asked.work, cache)
    parts = (tokenizer, encoder, autoencoder)
    transformer.train(asked.work, cache, parts, asked.steps)
    network = transformer.broaden(asked.work, cache, parts)
    autoencoder = vae.refine_decoder(autoencoder, asked.work, cache)
    reader = captioner.train(asked.work, cache, tokenizer, autoencoder)

    pipe = package.pipeline(tokenizer, encoder, autoencoder, network)
    package.save(asked.out, pipe, reader)
    figures = measure.named_right(pipe, reader, cache)
    measure.contact_sheet(pipe, cache, asked.out / "contact_sheet.png")
    (asked.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
