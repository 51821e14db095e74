"""Sequence parallelism by DeepSpeed's Ulysses: ranks that share each row of the learner.

Every rank of a sequence group holds an equal slice of the row's tokens. Attention exchanges slices for heads: a rank
computes the whole row for its share of the heads, with the packed attention of every other run, and gets its slice of
all heads back. All other layers work on the slice.

DeepSpeed is not told about the groups: it averages gradients over all ranks, which the trainer undoes for any number
of them. The loss is a sum over tokens with weights that contain every normalizer, so the gradients of slices add up.

Set `DS_ACCELERATOR` before importing this module, which imports DeepSpeed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from actors.engines.hf_engine.packed_attention import packed_attention
from rlad.errors import ConfigError
from rlad.sequence_parallel import head_problem, slice_of

SEQUENCE_PARALLEL_ATTENTION = "rlad_packed_sequence_parallel"


class SequenceGroup:
    """Ranks that share each row, consecutive ranks of the learner.

    Attributes:
        size: Number of ranks in the group; 1 without sequence parallelism.
        rank: Number of this rank in its group.
    """

    def __init__(self, causal_lm: PreTrainedModel, size: int, *, timeout_s: float | None = None) -> None:
        """Split the ranks into groups and make the model's attention exchange its heads. Collective.

        DeepSpeed's communication must be initialized, and the model's attention must be the packed one.

        Args:
            causal_lm: Model that computes on slices from now on.
            size: Number of ranks in a group.
            timeout_s: Deadline of an exchange, seconds; None for the default of the backend.

        Raises:
            ConfigError: The ranks or the model's heads cannot be divided among the ranks of a group.
        """
        self.size, self.rank = size, dist.get_rank() % size
        if size == 1:
            return
        config = causal_lm.config.get_text_config()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if problem := head_problem(size, heads=heads, kv_heads=kv_heads):
            raise ConfigError(problem)
        self._process_group = _own_group(size, timeout_s)
        exchange = UlyssesSPAttentionHF(
            attn=packed_attention,
            batch_size=1,
            attn_head_count=heads,
            attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_head_count=kv_heads,
            num_hidden_layers=config.num_hidden_layers,
            process_group=self._process_group,
            seq_length_is_variable=True,
        )

        # DeepSpeed's own registration replaces the function of an attention in this process, for all of its models.
        def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
            return exchange(module, query, key, value, mask, **kwargs)

        AttentionInterface.register(SEQUENCE_PARALLEL_ATTENTION, attention)
        causal_lm.set_attn_implementation(SEQUENCE_PARALLEL_ATTENTION)

    @property
    def counts(self) -> bool:
        """Whether this rank counts the group's rows, so that each is counted once."""
        return self.rank == 0

    def own_slice(self, size: int) -> slice:
        """Return the positions of a row that this rank holds."""
        return slice_of(size, rank=self.rank, ranks=self.size)

    def gathered(self, values: Tensor) -> Tensor:
        """Return the values of the whole row, [S], from those of each rank's slice, [S / N]. Collective."""
        if self.size == 1:
            return values
        slices = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(slices, values, group=self._process_group)
        return torch.cat(slices)


def _own_group(size: int, timeout_s: float | None) -> dist.ProcessGroup:
    """Return the process group of this rank's sequence group. Collective over all ranks."""
    world = dist.get_world_size()
    if world % size:
        raise ConfigError(f"learner.sequence_parallel {size} must divide the number of learner ranks; got {world}")
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    groups = [dist.new_group(list(range(first, first + size)), timeout=timeout) for first in range(0, world, size)]
    own = groups[dist.get_rank() // size]
    assert isinstance(own, dist.ProcessGroup)
    return own
