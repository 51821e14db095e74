"""What one piece of work costs on a device: operations, bytes, and the seconds that they take. docs/forecast.md derives them.

Letters: S tokens of a sequence, n sequences decoded at once, c tokens before the one that is decoded, A entries of a token's queries, t devices of an
engine. Arrays hold one entry a case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.forecast.assumptions import Array, Assumptions
from pipelines.forecast.devices import Device
from pipelines.planning.model_shape import DTYPE_BYTES, ModelShape

_GBIT_BYTES = 1e9 / 8
# What mixed-precision Adam reads and writes of a parameter: gradient 2, float32 master and two moments 12 each way, bfloat16 weight 2.
_ADAM_BYTES = 2 + 12 + 12 + 2
_GRADIENT_BYTES = WEIGHT_BYTES = 2


def forward_flops(shape: ModelShape, sequences: Array) -> float:
    """Of one forward pass over whole sequences: two a parameter and token, and causal attention's 2 A S^2 a layer."""
    attention = 2.0 * shape.layers * shape.attention_width * float(np.square(sequences).sum())
    return 2.0 * shape.parameters * float(sequences.sum()) + attention


def training_flops(shape: ModelShape, sequences: Array, *, checkpointing: bool, frozen: bool = False) -> float:
    """Of forward and backward: three times the forward pass (6 a parameter and token), four times where activations are made again (8).

    Frozen weights, beside which adapters are trained, have no gradient of their own: 2 a parameter and token fewer.
    """
    saved = 2.0 * shape.parameters * float(sequences.sum()) if frozen else 0.0
    return forward_flops(shape, sequences) * (4 if checkpointing else 3) - saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Devices of one kind as they are assumed to be used."""

    device: Device
    assumptions: Assumptions

    def forward_s(self, flops: float, devices: float) -> float:
        return flops / (devices * self.device.bf16_flops * self.assumptions.forward_share)

    def training_s(self, flops: float, devices: float) -> float:
        return flops / (devices * self.device.bf16_flops * self.assumptions.training_share)

    def host_s(self, num_bytes: float) -> float:
        """Between a device and its host's memory."""
        return num_bytes / (self.device.host_bytes_s * self.assumptions.link_share)

    def network_s(self, num_bytes: float) -> float:
        """From machine to machine."""
        return num_bytes / (self.assumptions.network_gbit * _GBIT_BYTES * self.assumptions.link_share)

    def peers_s(self, num_bytes: float, devices: float) -> float:
        """From each of so many devices to the next: over the machine's own links, and over the network where they are more than it has."""
        if devices > self.assumptions.gpus_per_node:
            return self.network_s(num_bytes)
        return num_bytes / (self.device.peer_bytes_s * self.assumptions.link_share)

    def is_one_node(self, devices: float) -> bool:
        return devices <= self.assumptions.gpus_per_node

    def optimizer_s(self, trained_parameters: int, ranks: int, *, devices: float, offloaded: bool) -> float:
        """Gradients summed and weights gathered by a ring, (n - 1) / n of them each, and Adam on a rank's share: in memory, or over the host's link."""
        ring = (_GRADIENT_BYTES + WEIGHT_BYTES) * trained_parameters * (ranks - 1) / ranks
        share = trained_parameters / ranks
        if offloaded:
            adam_s = self.host_s((_GRADIENT_BYTES + WEIGHT_BYTES) * share)
        else:
            adam_s = _ADAM_BYTES * share / (self.device.memory_bytes_s * self.assumptions.memory_share)
        return adam_s + self.peers_s(ring, devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An inference engine: a model on so many devices.

    Attributes:
        devices: of the engine; a share where several engines have one.
        max_sequences: that it decodes at once, whatever its memory.
        cache_tokens: that its key-value cache holds.
    """

    machine: Machine
    shape: ModelShape
    dtype: str
    devices: float
    max_sequences: int
    cache_tokens: float

    def slots(self, context: Array) -> Array:
        """Sequences at once, each with so many tokens in the cache; at least one, which `rlad plan` checks."""
        return np.clip(np.floor(self.cache_tokens / context), 1, self.max_sequences)

    def decode_s(self, sequences: Array, context: Array) -> Array:
        """One token of each of n sequences with c tokens before it.

        The weights and the sequences' keys and values are read once, or the matrix units take longer: two operations a parameter and sequence, and
        attention's 4 A c a layer. Besides, what an engine takes for a step whatever is in it, and with tensor parallelism two sums a layer.
        """
        device, assumed, shape, size = (
            self.machine.device,
            self.machine.assumptions,
            self.shape,
            DTYPE_BYTES[self.dtype],
        )
        read = (shape.parameters + sequences * context * shape.kv_values_per_token) * size
        flops = sequences * (2.0 * shape.parameters + 4.0 * shape.layers * shape.attention_width * context)
        memory_s = read / (self.devices * device.memory_bytes_s * assumed.memory_share)
        matrix_s = flops / (self.devices * device.bf16_flops * assumed.forward_share)
        return np.maximum(memory_s, matrix_s) + assumed.engine_ms / 1e3 + sequences * self._sums_s

    def forward_s(self, sequences: Array) -> float:
        """A forward pass over whole sequences."""
        return (
            self.machine.forward_s(forward_flops(self.shape, sequences), self.devices)
            + float(sequences.sum()) * self._sums_s
        )

    @property
    def _sums_s(self) -> float:
        """Of one token's all-reduces under tensor parallelism: two a layer, each of which moves 2 (t - 1) / t of its hidden state."""
        parts = max(1.0, self.devices)
        num_bytes = 2 * self.shape.layers * 2 * (parts - 1) / parts * self.shape.hidden * DTYPE_BYTES[self.dtype]
        return self.machine.peers_s(num_bytes, self.devices)
