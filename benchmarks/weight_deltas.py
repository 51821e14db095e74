"""Weight delta benchmark: bytes and time of exact deltas, with steps of AdamW on a real model.

    make smollm2
    python -m benchmarks.weight_deltas --json OUT

Trains on generated puzzles with float32 masters and bfloat16 weights, as the learner does on GPUs, at two learning
rates of RL. After the warm-up every step's weights are published twice through one node: as a delta and in full. The
file of the deltas is compared with the weights bit by bit. Without `make smollm2` the model has random weights of the
same shape; its gradients, and so its deltas, are other ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import ray
import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from actors.messages import WeightsPublication
from actors.weights.publish import DeltaPublisher
from benchmarks.measure import JsonPath, Paired, Ratio, Result, show
from benchmarks.weights import Engine, Stage, Writer, timed
from pipelines.run.progress import RunProgress
from rlad.config.learner import OptimizerConfig
from rlad.data.knights_knaves.prompts import generate_prompts
from rlad.data.records import PromptRecord
from rlad.weight_file import safetensors_parts

_SMOLLM2 = Path("build/models/smollm2-135m-instruct")
_SHAPE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
# Learning rates of RL, and the largest share of the model's bytes that a step at each of them should send.
_TARGETS = {1e-6: 0.05, 1e-5: 0.10}
_TOKENS = 256
_TIMEOUT_S = 600.0
# Versions before the first measured one: the first ones create and map the pages of the store and of the file.
_PUBLISHED_WARM_UPS = 3


class Trainer:
    """AdamW on float32 masters. Gradients are those of the bfloat16 weights, computed in float32."""

    def __init__(self, directory: Path | None) -> None:
        """
        Args:
            directory: Hugging Face model directory; None for random weights.
        """
        torch.manual_seed(0)
        self._model = (
            LlamaForCausalLM(_SHAPE)
            if directory is None
            else AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        )
        self._masters = [parameter.detach().clone() for parameter in self._model.parameters()]
        self._batches = _batches(directory)
        self.weights = {name: parameter.detach().bfloat16() for name, parameter in self._model.named_parameters()}

    def begin(self, lr: float) -> None:
        """Start a new optimizer with the learner's defaults at a constant learning rate."""
        defaults = OptimizerConfig(lr=lr)
        self._max_norm = defaults.max_gradient_norm
        self._optimizer = torch.optim.AdamW(
            self._masters, lr=lr, betas=defaults.betas, eps=defaults.eps, weight_decay=defaults.weight_decay
        )

    def step(self) -> None:
        """Train on the next batch, and update `weights` in place."""
        parameters = list(self._model.parameters())
        with torch.no_grad():
            for parameter, weight in zip(parameters, self.weights.values(), strict=True):
                parameter.copy_(weight)
        tokens = next(self._batches)
        self._model(input_ids=tokens, labels=tokens).loss.backward()
        for master, parameter in zip(self._masters, parameters, strict=True):
            master.grad, parameter.grad = parameter.grad, None
        torch.nn.utils.clip_grad_norm_(self._masters, self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        for weight, master in zip(self.weights.values(), self._masters, strict=True):
            weight.copy_(master)


def _text(record: PromptRecord) -> str:
    return record.prompt if isinstance(record.prompt, str) else " ".join(each["content"] for each in record.prompt)


def _batches(directory: Path | None) -> Iterator[torch.Tensor]:
    """Yield token ids [1, T] without end: puzzles, or random ids without a tokenizer."""
    if directory is None:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.randint(_SHAPE.vocab_size, (1, _TOKENS), generator=generator)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    seed = 0
    while True:
        puzzles = generate_prompts(form="sentences", people={3: 1.0}, count=8, split="train", seed=seed)
        ids = tokenizer(" ".join(_text(puzzle) for puzzle in puzzles), return_tensors="pt").input_ids
        yield ids[:, :_TOKENS]
        seed += 1


class Chain:
    """Sequence of published versions, and the node that receives them."""

    def __init__(self, name: str, full_every: int) -> None:
        """
        Args:
            name: Name of the chain; it is part of the folder's.
            full_every: Versions from one full version to the next, as in `weights.full_every`.
        """
        self._publisher = DeltaPublisher(full_every)
        self._writer = ray.remote(num_cpus=0)(Writer).remote(f"benchmark-{name}-{os.getpid()}")
        self._engine = ray.remote(num_cpus=0)(Engine).remote()
        self.stages: list[dict[str, Stage]] = []

    def update(self, weights: dict[str, torch.Tensor], version: int) -> tuple[float, WeightsPublication, Path]:
        """Publish weights, write and map them. Return the seconds without actor calls."""
        publication, published = timed(lambda: self._publisher.publish(weights, version))
        path, written = ray.get(self._writer.write.remote(publication, False), timeout=_TIMEOUT_S)
        mapped = ray.get(self._engine.map.remote(path, publication.manifest, False), timeout=_TIMEOUT_S)
        self.stages.append({"publish": published, "write": written, "map": mapped})
        return sum(stage.elapsed_s for stage in self.stages[-1].values()), publication, Path(path)

    def figures(self, name: str) -> dict[str, float]:
        """Return the median seconds of each stage."""
        return {
            f"{name}_{stage}_s": float(np.median([stages[stage].elapsed_s for stages in self.stages]))
            for stage in self.stages[0]
        }

    def close(self) -> None:
        ray.get(self._writer.close.remote(), timeout=_TIMEOUT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Measurements at one learning rate.

    Attributes:
        shares: Bytes put over bytes of the model, by step.
        updates: Seconds of an update by a delta, and of the same one in full.
        is_equal: Whether the file after every delta had the weights, bit by bit.
        figures: Median seconds of each stage.
    """

    shares: list[float]
    updates: Paired
    is_equal: bool
    figures: dict[str, float]


def measure(trainer: Trainer, lr: float, *, warm_up: int, steps: int, progress: RunProgress) -> Measured:
    """Train at a learning rate, and publish the last steps twice."""
    deltas, full = (Chain(name, every) for name, every in (("delta", warm_up + steps + 1), ("full", 1)))
    trainer.begin(lr)
    shares: list[float] = []
    seconds: dict[str, list[float]] = {"delta": [], "full": []}
    is_equal = True
    with progress.phase(f"steps at {lr:g}", total=warm_up + steps) as phase:
        for step in range(warm_up + steps):
            trainer.step()
            phase.advance()
            if step < warm_up - _PUBLISHED_WARM_UPS:
                continue
            order = [deltas, full] if step % 2 else [full, deltas]  # neither always finds the caches of the other
            took = {chain: chain.update(trainer.weights, step) for chain in order}
            if step < warm_up:
                deltas.stages.clear()
                full.stages.clear()
                continue
            elapsed_s, publication, path = took[deltas]
            seconds["delta"].append(elapsed_s)
            seconds["full"].append(took[full][0])
            shares.append(publication.deltas[-1].num_bytes / publication.manifest.num_bytes)
            expected = np.concatenate(safetensors_parts(trainer.weights))
            is_equal &= bool(np.array_equal(np.fromfile(path, np.uint8), expected))
    figures = deltas.figures("delta") | full.figures("full")
    deltas.close()
    full.close()
    updates = Paired(first_s=tuple(seconds["delta"]), second_s=tuple(seconds["full"]))
    return Measured(shares=shares, updates=updates, is_equal=is_equal, figures=figures)


def main(
    json: JsonPath = None,
    model: Annotated[Path, typer.Option(help="Hugging Face model directory.")] = _SMOLLM2,
    warm_up: Annotated[int, typer.Option(min=_PUBLISHED_WARM_UPS + 1, help="Steps before the measured ones.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps at each learning rate.")] = 5,
) -> None:
    """Measure exact weight deltas. A few minutes."""
    console = Console()
    directory = model if (model / "config.json").is_file() else None
    trainer = Trainer(directory)
    num_bytes = sum(weight.nbytes for weight in trainer.weights.values())
    # Each chain holds two full versions at most.
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=6 * num_bytes + (256 << 20),
    )
    found: dict[float, Measured] = {}
    try:
        with RunProgress(console, total_steps=1) as progress:
            for lr in _TARGETS:
                found[lr] = measure(trainer, lr, warm_up=warm_up, steps=steps, progress=progress)
    finally:
        ray.shutdown()
    ratios: list[Ratio] = []
    figures: dict[str, Any] = {}
    for lr, measured in found.items():
        ratios += [
            Ratio(
                name=f"put_share_at_{lr:g}",
                value=float(np.mean(measured.shares)),
                target=_TARGETS[lr],
                means="bytes of a delta over those of the model, mean of the steps",
            ),
            Ratio(
                name=f"delta_over_full_at_{lr:g}",
                value=measured.updates.ratio,
                target=0.5,
                means="publish, write, verify and map a delta on one node, over a full version",
            ),
        ]
        figures |= {
            f"{name}_at_{lr:g}": value
            for name, value in {
                **measured.figures,
                **measured.updates.figures("delta", "full"),
                "shares": [round(share, 4) for share in measured.shares],
                "bit_equal": measured.is_equal,
            }.items()
        }
    settings = {
        "model": "random weights" if directory is None else directory.name,
        "bytes": num_bytes,
        "warm_up": warm_up,
        "steps": steps,
        "tokens": _TOKENS,
    }
    show(Result(benchmark="weight_deltas", ratios=ratios, figures=figures, settings=settings), json, console)


if __name__ == "__main__":
    typer.run(main)
