"""Peak memory and accuracy of chunked and materialised log-probabilities, forward and backward.

Each variant runs in a separate process. Its memory is the growth of the process's peak resident size during the
computation. The inputs exist before, so it counts intermediate values, results and gradients.
"""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from rlad.distributions.hidden_state_distillation import distillation_statistics
from rlad.errors import EngineError
from rlad.logprobs import selected_logprobs

NUM_TOKENS, VOCABULARY, HIDDEN = 8192, 151_936, 64
"""The vocabulary is Qwen3's. The hidden size is small, so that the weight's gradient does not dominate the memory."""
SMALL_TOKENS = 512

Way = Literal["chunked", "materialised", "distilled"]
_TIMEOUT_S = 300.0
# Number of [tokens, vocabulary] tensors: logits, their log-softmax, its gradient, and a margin.
_MATERIALISED_TENSORS = 3.3


def peak_bytes(way: Way, num_tokens: int) -> int:
    """Return the peak memory in bytes of the log-probabilities of `num_tokens` tokens and of their gradients.

    Raises:
        EngineError: the machine has too little free memory, or the process died or timed out.
    """
    needed = int(_MATERIALISED_TENSORS * num_tokens * VOCABULARY * 4) if way == "materialised" else 0
    free = psutil.virtual_memory().available
    if needed > free:
        raise EngineError(
            f"{num_tokens} x {VOCABULARY} materialised log-probabilities require {needed / 1e9:.0f} GB of free memory; "
            f"got {free / 1e9:.0f} GB: end other processes"
        )
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(way, num_tokens, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(_TIMEOUT_S):
            raise EngineError(f"{way} log-probabilities of {num_tokens} tokens took longer than {_TIMEOUT_S:g} s")
        peak: int = receiver.recv()
    except EOFError as error:
        raise EngineError(
            f"the process of the {way} log-probabilities died; look for an out-of-memory kill in the kernel log"
        ) from error
    finally:
        process.kill()
        process.join()
    return peak


def relative_errors(num_tokens: int) -> dict[Way, float]:
    """Return the error of each variant in float32 against the materialised computation in float64.

    The error is the largest difference of the log-probabilities and both gradients, each relative to its largest entry.
    """
    exact = _compute("materialised", *_problem(num_tokens, torch.float64))
    errors: dict[Way, float] = {}
    for way in ("chunked", "materialised"):
        found = _compute(way, *_problem(num_tokens))
        errors[way] = max(
            float((result - expected).abs().max() / expected.abs().max())
            for result, expected in zip(found, exact, strict=True)
        )
    return errors


def _measure(way: Way, num_tokens: int, sender: Connection) -> None:
    problem = _problem(num_tokens)
    _compute(way, *_problem(8))  # load lazily imported libraries before the measurement
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak resident size
    before = psutil.Process().memory_info().rss
    results = _compute(way, *problem)
    sender.send(_largest_resident_bytes() - before)
    del results


def _largest_resident_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _problem(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states [N, H], weight [V, H], targets [N] and incoming gradient [N], equal in each dtype."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, HIDDEN, generator=generator)
    weight = 3 * HIDDEN**-0.5 * torch.randn(VOCABULARY, HIDDEN, generator=generator)
    targets = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
    incoming = torch.randn(num_tokens, generator=generator) / num_tokens
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, incoming.to(dtype)


def _compute(way: Way, hidden: Tensor, weight: Tensor, targets: Tensor, incoming: Tensor) -> list[Tensor]:
    """Return the log-probabilities [N] and the gradients of the hidden states and the weight.

    With `distilled`, the divergences from a teacher that is given by hidden states take the log-probabilities' place.
    """
    if way == "distilled":
        teacher_hidden, teacher_weight = hidden.detach().flip(0), weight.detach().flip(0)
        logprobs = distillation_statistics(hidden, weight, teacher_hidden, teacher_weight, targets).divergences
    elif way == "chunked":
        logprobs = selected_logprobs(hidden, weight, targets)
    else:
        logprobs = torch.log_softmax(hidden @ weight.t(), dim=1).gather(1, targets[:, None])[:, 0]
    logprobs.backward(incoming)
    assert hidden.grad is not None
    assert weight.grad is not None
    return [logprobs.detach(), hidden.grad, weight.grad]
