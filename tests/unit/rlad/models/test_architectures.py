"""The built-in table of architectures, against published numbers of parameters."""

from __future__ import annotations

import pytest

from pipelines.planning.model_shape import shape_from_table
from rlad.models.architectures import known_architecture, known_models

# From the models' own pages: parameters of the safetensors files, with tied ones counted once.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "google/gemma-3-270m-it": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
}


def weights_of(name: str) -> int:
    """Count the weights of a decoder from its sizes alone: attention, gated feed-forward, norms and embeddings."""
    known = known_architecture(name)
    assert known is not None
    hidden, layers, kind = known["hidden_size"], known["num_hidden_layers"], known["model_type"]
    head = known.get("head_dim", hidden // known["num_attention_heads"])
    query, key = known["num_attention_heads"] * head, known["num_key_value_heads"] * head
    biases = query + 2 * key if kind == "qwen2" else 0
    norms = {"qwen3": 2 * hidden + 2 * head, "gemma3_text": 4 * hidden + 2 * head}.get(kind, 2 * hidden)
    layer = 2 * hidden * query + 2 * hidden * key + 3 * hidden * known["intermediate_size"] + norms + biases
    embeddings = known["vocab_size"] * hidden * (1 if known["tie_word_embeddings"] else 2)
    return layers * layer + embeddings + hidden


def test_sizes_are_the_published_ones() -> None:
    assert {name: weights_of(name) for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-0.5B", "google/gemma-3-270m", "meta-llama/Llama-3.2-1B"]
)
def test_shapes_follow_from_the_table(name: str) -> None:
    known = known_architecture(f"{name}@main")
    assert known is not None
    shape = shape_from_table(known)
    assert shape.is_from_table
    assert shape.parameters == weights_of(name)
    assert (shape.layers, shape.vocabulary) == (known["num_hidden_layers"], known["vocab_size"])


def test_every_model_of_the_table_has_a_size() -> None:
    assert len(known_models()) > 60
    assert all(10**8 < weights_of(name) < 10**11 for name in known_models())


def test_models_outside_the_table_and_directories_are_unknown() -> None:
    assert known_architecture("team/unheard-of") is None
    assert known_architecture("/models/Qwen/Qwen3-8B") is None
    assert known_architecture("registry:kk@3") is None
    assert known_architecture("hf://Qwen/Qwen3-8B") is None
