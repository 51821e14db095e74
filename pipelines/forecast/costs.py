"""Operations, bytes and seconds of a piece of work on a device. docs/forecast.md derives the formulas.

Symbols: S tokens of a sequence, n concurrent sequences, c context tokens of a decoded token, A query entries of a
token, t devices of an engine. Arrays have one entry per case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.forecast.assumptions import Array, Assumptions
from pipelines.forecast.devices import Device
from pipelines.planning.model_shape import DTYPE_BYTES, ModelShape

_GBIT_BYTES = 1e9 / 8
# Bytes that mixed-precision Adam reads and writes per parameter: gradient 2, float32 master weight and two moments 12
# in each direction, bfloat16 weight 2.
_ADAM_BYTES = 2 + 12 + 12 + 2
_GRADIENT_BYTES = WEIGHT_BYTES = 2


def forward_flops(shape: ModelShape, sequences: Array) -> float:
    """Return the operations of a forward pass: two per parameter and token, and 2 A S^2 per layer for causal attention.

    Args:
        sequences: float64 [n], tokens of each sequence.
    """
    attention = 2.0 * shape.layers * shape.attention_width * float(np.square(sequences).sum())
    return 2.0 * shape.parameters * float(sequences.sum()) + attention


def training_flops(shape: ModelShape, sequences: Array, *, checkpointing: bool, frozen: bool = False) -> float:
    """Return the operations of a forward and backward pass.

    They are three times the forward pass (6 per parameter and token), or four times (8) if activations are recomputed.
    Frozen weights have no gradient, which saves 2 per parameter and token.

    Args:
        sequences: float64 [n], tokens of each sequence.
        checkpointing: Whether activations are recomputed in the backward pass.
        frozen: Whether only adapters are trained.
    """
    saved = 2.0 * shape.parameters * float(sequences.sum()) if frozen else 0.0
    return forward_flops(shape, sequences) * (4 if checkpointing else 3) - saved


def exchanged_bytes(shape: ModelShape, tokens: float, ranks: int, *, checkpointing: bool) -> float:
    """Return the bytes that a rank sends when N ranks share each row, for one forward and backward pass.

    In every layer it sends (N - 1) / N of the queries, keys, values and results of its tokens, and of their gradients.

    Args:
        tokens: Tokens of the rank's slices.
        ranks: Number of ranks that share a row, N.
        checkpointing: Whether the backward pass repeats the forward pass.
    """
    values = 2.0 * shape.layers * shape.attention_width + shape.kv_values_per_token
    return tokens * values * WEIGHT_BYTES * (ranks - 1) / ranks * (3 if checkpointing else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Device type with the assumptions on its use."""

    device: Device
    assumptions: Assumptions

    def forward_s(self, flops: float, devices: float) -> float:
        """Return the seconds of operations in an engine's forward pass."""
        return flops / (devices * self.device.bf16_flops * self.assumptions.forward_share)

    def training_s(self, flops: float, devices: float) -> float:
        """Return the seconds of operations in the learner."""
        return flops / (devices * self.device.bf16_flops * self.assumptions.training_share)

    def host_s(self, num_bytes: float) -> float:
        """Return the seconds of a transfer between a device and host memory."""
        return num_bytes / (self.device.host_bytes_s * self.assumptions.link_share)

    def network_s(self, num_bytes: float) -> float:
        """Return the seconds of a transfer between nodes."""
        return num_bytes / (self.assumptions.network_gbit * _GBIT_BYTES * self.assumptions.link_share)

    def store_s(self, num_bytes: float) -> float:
        """Return the seconds of a transfer between the object stores of two nodes."""
        return num_bytes / (self.assumptions.store_gbit * _GBIT_BYTES)

    def peers_s(self, num_bytes: float, devices: float) -> float:
        """Return the seconds of a transfer from each device to the next.

        It uses the links inside a node if all devices are on one, and the network otherwise.
        """
        if devices > self.assumptions.gpus_per_node:
            return self.network_s(num_bytes)
        return num_bytes / (self.device.peer_bytes_s * self.assumptions.link_share)

    def is_one_node(self, devices: float) -> bool:
        """Return whether these devices fit on one node."""
        return devices <= self.assumptions.gpus_per_node

    def optimizer_s(self, trained_parameters: int, ranks: int, *, devices: float, offloaded: bool) -> float:
        """Return the seconds of an optimizer step.

        A ring over n ranks reduces the gradients and gathers the weights, moving (n - 1) / n of each. Adam updates the
        rank's shard in device memory, or over the host link if the optimizer state is offloaded.
        """
        ring = (_GRADIENT_BYTES + WEIGHT_BYTES) * trained_parameters * (ranks - 1) / ranks
        share = trained_parameters / ranks
        if offloaded:
            adam_s = self.host_s((_GRADIENT_BYTES + WEIGHT_BYTES) * share)
        else:
            adam_s = _ADAM_BYTES * share / (self.device.memory_bytes_s * self.assumptions.memory_share)
        return adam_s + self.peers_s(ring, devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Inference engine: a model on one or more devices.

    Attributes:
        machine: Devices of the engine.
        shape: Shape of the model.
        dtype: Type of weights and cache.
        devices: Number of devices; a fraction if engines share one.
        max_sequences: Maximum number of concurrent sequences.
        cache_tokens: Capacity of the key-value cache, in tokens.
    """

    machine: Machine
    shape: ModelShape
    dtype: str
    devices: float
    max_sequences: int
    cache_tokens: float

    def slots(self, context: Array) -> Array:
        """Return the concurrent sequences for a context length: float64, the shape of `context`.

        At least one: `rlad plan` checks that it fits.
        """
        return np.clip(np.floor(self.cache_tokens / context), 1, self.max_sequences)

    def decode_s(self, sequences: Array, context: Array) -> Array:
        """Return the seconds to decode one token of each of n sequences with c context tokens.

        The step is bound by memory (weights, and the keys and values of all sequences) or by operations (two per
        parameter and sequence, and 4 A c per layer for attention). The engine's overhead is added, and two all-reduces
        per layer with tensor parallelism.

        Args:
            sequences: Number of sequences n, one entry per case.
            context: Context tokens c, of the same shape.
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
        return np.maximum(memory_s, matrix_s) + assumed.engine_ms / 1e3 + sequences * self._all_reduce_s

    def forward_s(self, sequences: Array) -> float:
        """Return the seconds of a forward pass over sequences of these lengths (float64 [n])."""
        return (
            self.machine.forward_s(forward_flops(self.shape, sequences), self.devices)
            + float(sequences.sum()) * self._all_reduce_s
        )

    @property
    def _all_reduce_s(self) -> float:
        """Seconds of one token's all-reduces: two per layer, each moving 2 (t - 1) / t of the hidden state."""
        parts = max(1.0, self.devices)
        num_bytes = 2 * self.shape.layers * 2 * (parts - 1) / parts * self.shape.hidden * DTYPE_BYTES[self.dtype]
        return self.machine.peers_s(num_bytes, self.devices)
