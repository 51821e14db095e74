"""TRL's GRPO trainer in a separate process: one training step per command, with responses of given lengths.

`transformers` generates the responses, as usual on a CPU. The settings favour TRL: one generation and one micro-batch
of all responses, no activation checkpointing, no reference model, float32, no logging.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.step_reward import share_of_even_words
from benchmarks.workload import END_ID
from rlad.errors import EngineError

_START_TIMEOUT_S = 300.0
_STEP_TIMEOUT_S = 300.0

Lengths = Mapping[str, Mapping[int, int]]
"""Response tokens by kind of step and by the first token of the prompt."""


class TrlTrainer:
    """Handle of the process, for the benchmark."""

    def __init__(
        self, model_path: str, prompts: Sequence[str], lengths: Lengths, *, group_size: int, threads: int
    ) -> None:
        """Start the process.

        Raises:
            EngineError: the process did not start.
        """
        context = get_context("spawn")
        self._connection, child_end = context.Pipe()
        arguments = (
            child_end,
            model_path,
            list(prompts),
            {kind: dict(by_token) for kind, by_token in lengths.items()},
            group_size,
            threads,
        )
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        child_end.close()
        self._receive(_START_TIMEOUT_S)

    def step(self, kind: str) -> float:
        """Run one training step, from prompts to new weights, and return its seconds.

        Raises:
            EngineError: the step did not end, or its responses do not have the requested lengths.
        """
        self._connection.send(kind)
        elapsed_s: float = self._receive(_STEP_TIMEOUT_S)
        return elapsed_s

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _receive(self, timeout_s: float) -> Any:
        try:
            if self._connection.poll(timeout_s):
                return self._connection.recv()
        except EOFError as error:
            raise EngineError("the process of TRL died; its message is above") from error
        raise EngineError(f"TRL did not answer within {timeout_s:g} s")


def _serve(
    connection: Connection, model_path: str, prompts: list[str], lengths: Lengths, group_size: int, threads: int
) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(threads)

    class StopAtLength(LogitsProcessor):
        """Logits processor that allows the end-of-sequence token at the given length only, and nothing else there."""

        kind = next(iter(lengths))

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            budget = torch.tensor([lengths[self.kind][first] for first in input_ids[:, 0].tolist()])
            ends = input_ids.shape[1] - num_prompt_tokens >= budget - 1
            end_scores = torch.where(ends, 0.0, -torch.inf)
            scores = scores.masked_fill(ends[:, None], -torch.inf)
            scores[:, END_ID] = end_scores
            return scores

    class OnCommand(TrainerCallback):
        """Callback that waits for the kind of each step before it, and sends its duration after it."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            stop.kind = connection.recv()
            self._started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            elapsed = time.perf_counter() - self._started
            expected = group_size * sum(lengths[stop.kind].values())
            if generated[-1] != expected:
                raise EngineError(f"expected {expected} tokens from TRL; got {generated[-1]}")
            connection.send(elapsed)

    generated: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        generated.append(sum(len(ids) for ids in completion_ids))
        return [share_of_even_words(completion, "") for completion in completions]

    stop = StopAtLength()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    num_prompt_tokens = len(tokenizer(prompts[0])["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.generate = functools.partial(model.generate, logits_processor=LogitsProcessorList([stop]))
    with tempfile.TemporaryDirectory(prefix="rlad-benchmark-") as directory:
        config = GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=len(prompts) * group_size,
            num_generations=group_size,
            max_completion_length=max(max(by_token.values()) for by_token in lengths.values()),
            learning_rate=1e-6,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            max_steps=1_000_000,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
            callbacks=[OnCommand()],
        )
        connection.send("ready")
        trainer.train()
