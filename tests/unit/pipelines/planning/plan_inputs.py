"""Model directories without weights and prompt files, as inputs of a plan."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from pipelines.cluster.resources import Resources
from pipelines.planning.plan import Plan

CONFIGS = Path(__file__).parents[4] / "configs"
CPU_MACHINE = Resources(cpus=2, gpus=0)
BYTES = "rollout.max_prompt_tokens=4096"  # the tests' tokenizer has one token per byte


def write_shape(
    directory: Path,
    *,
    hidden: int,
    layers: int,
    feed_forward: int,
    heads: int,
    tied: bool,
    other_vocabulary: bool = False,
) -> Path:
    """Write a model directory with configuration and tokenizer, without weights."""
    Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=other_vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0])
    fast.chat_template = (
        "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    fast.save_pretrained(directory)
    return directory


def errors(plan: Plan) -> list[str]:
    return [finding.text for finding in plan.findings if finding.level == "error"]


def prompt_files(directory: Path, task: str = "math") -> list[str]:
    for name in ("train", "evaluation"):
        rows = [
            {"id": f"{name}{index}", "prompt": f"{name} {index}", "task": task, "answer": "1"} for index in range(4)
        ]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"prompts.path={directory / 'train.jsonl'}", f"evaluation.prompts.path={directory / 'evaluation.jsonl'}"]
