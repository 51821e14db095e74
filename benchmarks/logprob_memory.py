"""Peak memory of log-probabilities, forward and backward, each way in a process of its own; and that both ways give the same.

Memory is the growth of the process's largest resident size while it computes: inputs are there before, so what counts is what the computation takes,
its results and gradients included.
"""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from rlad.errors import EngineError
from rlad.logprobs import selected_logprobs

NUM_TOKENS, VOCABULARY, HIDDEN = 8192, 151_936, 64
"""Of Qwen3's vocabulary. The hidden size is small, so that the weight's gradient, which both ways need, hides nothing."""
SMALL_TOKENS = 512

Way = Literal["chunked", "materialised"]
_TIMEOUT_S = 300.0
# Logits, their log-softmax and its gradient are three such tensors; some room for the rest.
_MATERIALISED_TENSORS = 3.3


def peak_bytes(way: Way, num_tokens: int) -> int:
    """What log-probabilities and gradients of so many tokens take at their peak.

    Raises:
        EngineError: the machine has not enough free memory, or the process died.
    """
    needed = int(_MATERIALISED_TENSORS * num_tokens * VOCABULARY * 4) if way == "materialised" else 0
    free = psutil.virtual_memory().available
    if needed > free:
        raise EngineError(
            f"materialising {num_tokens} x {VOCABULARY} takes {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free: end what else runs"
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
        raise EngineError(f"the process of {way} log-probabilities died: was it killed for its memory?") from error
    finally:
        process.kill()
        process.join()
    return peak


def relative_errors(num_tokens: int) -> dict[Way, float]:
    """Of each way in float32, the largest difference from the materialised computation in float64: of log-probabilities and of both gradients, each
    relative to its largest entry."""
    exact = _compute("materialised", *_problem(num_tokens, torch.float64))
    errors: dict[Way, float] = {}
    for way in ("chunked", "materialised"):
        found = _compute(way, *_problem(num_tokens))
        errors[way] = max(
            float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, exact, strict=True)
        )
    return errors


def _measure(way: Way, num_tokens: int, sender: Connection) -> None:
    problem = _problem(num_tokens)
    _compute(way, *_problem(8))  # libraries that are loaded at their first use are not what is measured
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size begins anew
    before = psutil.Process().memory_info().rss
    results = _compute(way, *problem)
    sender.send(_largest_resident_bytes() - before)
    del results


def _largest_resident_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _problem(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets, and the gradient that comes from the loss; the same numbers in each dtype."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, HIDDEN, generator=generator)
    weight = 3 * HIDDEN**-0.5 * torch.randn(VOCABULARY, HIDDEN, generator=generator)
    targets = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
    incoming = torch.randn(num_tokens, generator=generator) / num_tokens
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, incoming.to(dtype)


def _compute(way: Way, hidden: Tensor, weight: Tensor, targets: Tensor, incoming: Tensor) -> list[Tensor]:
    """Log-probabilities and the gradients of hidden states and weight."""
    if way == "chunked":
        logprobs = selected_logprobs(hidden, weight, targets)
    else:
        logprobs = torch.log_softmax(hidden @ weight.t(), dim=1).gather(1, targets[:, None])[:, 0]
    logprobs.backward(incoming)
    assert hidden.grad is not None
    assert weight.grad is not None
    return [logprobs.detach(), hidden.grad, weight.grad]
