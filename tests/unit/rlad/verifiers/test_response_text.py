"""Extraction of answers from response texts."""

from __future__ import annotations

import time

import pytest

from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x \mid x>1\right\}} }", r"\left\{x \mid x>1\right\}"),
        (r"a } {\boxed{ 3 }}", "3"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"\boxed{1 + \boxed{2}}", "2"),
        (r"\fbox {4}", "4"),
        (r"\boxed 7.", "7"),
        (r"\boxed{25}\%", r"25\%"),
        (r"\boxed{}", ""),
        (r"\boxed{5", None),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_last_complete_box_counts(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>1</answer> no: <ANSWER> 2\n</Answer> so", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>1<answer>2</answer>", "2"),
        ("</answer>1<answer>", None),
        ("<answer></answer>", ""),
        ("1", None),
    ],
)
def test_last_complete_answer_block_counts(text: str, content: str | None) -> None:
    assert last_answer_block(text) == content


@pytest.mark.parametrize(
    ("text", "spoken"), [("a", "a"), ("a</think>b</think> c", " c"), ("<think>a</think>b", "b"), ("a<think>b", None)]
)
def test_thinking_is_removed(text: str, spoken: str | None) -> None:
    assert after_thinking(text) == spoken


@pytest.mark.parametrize("hostile", [r"\boxed{", "<answer>", "<think>", "{", r"\boxed{}"])
def test_adversarial_texts_are_read_in_linear_time(hostile: str) -> None:
    start = time.process_time()
    for read in (last_boxed, last_answer_block, after_thinking):
        read(hostile * 50_000)
    assert time.process_time() - start < 2
