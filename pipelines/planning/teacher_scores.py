"""Size of teacher scores, by what the teacher sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.planning.model_shape import DTYPE_BYTES, ModelShape
from rlad.config import RunConfig
from rlad.teacher.limits import scores_bytes

_GIB = 2**30
# Bytes of scores of a step above which the object store and the network are a concern.
_LARGE_STEP_BYTES = 16 * _GIB


def score_size_notes(config: RunConfig, frozen: Mapping[str, ModelShape | None]) -> Iterator[tuple[bool, str]]:
    """Describe the size of full-vocabulary scores; nothing for objectives of selected tokens.

    Args:
        config: Configuration of the run.
        frozen: Shapes of the frozen models by pool; None for unknown ones.

    Yields:
        Whether the size is a concern, and a sentence.
    """
    if config.teacher_support not in ("full", "hidden_states"):
        return
    tokens = config.training.prompts_per_step * config.rollout.group_size * config.rollout.max_response_tokens
    for pool, model in config.scoring_pools.items():
        shape = frozen.get(pool)
        if pool == "reference" or shape is None:
            continue
        full = scores_bytes(1, shape.vocabulary)
        hidden = shape.hidden * DTYPE_BYTES[model.dtype] + 4
        size, other = (hidden, full) if model.send == "hidden_states" else (full, hidden)
        is_large = tokens * size > _LARGE_STEP_BYTES
        advice = ". Set teacher.send to hidden_states" if is_large and size > other and model.send == "logprobs" else ""
        yield (
            is_large,
            f"the {pool} sends {size:,} bytes a token ({model.send}), at most {tokens * size / _GIB:.1f} GiB a step; "
            f"{'log-probabilities of the vocabulary' if model.send == 'hidden_states' else 'hidden states'} would take "
            f"{other:,} bytes a token{advice}",
        )


def hidden_state_gib(shape: ModelShape, dtype: str, config: RunConfig) -> float:
    """Return the memory that hidden states of a teacher add to a learner rank, in GiB.

    It holds the output layer, the states of one micro-batch, and two more tensors of the logits of one chunk. On CPU
    a float32 copy of a bfloat16 output layer exists while it is multiplied.
    """
    value = DTYPE_BYTES[dtype]
    copies = value + (4 if value < 4 and not config.learner.gpus_per_rank else 0)
    head = shape.vocabulary * shape.hidden * copies
    states = config.learner.micro_batch_tokens * shape.hidden * value
    logits = 2 * config.learner.logprob_chunk_tokens * shape.vocabulary * 4
    return (head + states + logits) / _GIB
