"""Verdicts on Knights & Knaves answers in sentences and in compact notation."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlad.contracts import Outcome
from rlad.data.knights_knaves.sentences import NAMES, render_answer
from rlad.errors import ConfigError, DataError
from rlad.verifiers import KnightsKnavesVerifierConfig, Verdict, build_verifier

SENTENCES = build_verifier({"name": "knights_knaves"})
COMPACT = build_verifier({"name": "knights_knaves", "form": "compact"})

GOLD = "(1) Zoey is a knight\n(2) Jack is a knave\n(3) Jackson is a knight"


def outcome(answer_block: str) -> Outcome:
    return judge(f"<think>Zoey may be a knave.</think>\n<answer>{answer_block}</answer>")


def judge(response: str, answer: Any = GOLD) -> Outcome:
    verdict = SENTENCES.verify(response, answer)
    assert verdict.reward == (1.0 if verdict.outcome is Outcome.CORRECT else 0.0)
    return verdict.outcome


@pytest.fixture(scope="module")
def real_rows(shared_data: Path) -> list[dict[str, Any]]:
    paths = [shared_data / "knights_knaves" / f"{people}ppl_test.parquet" for people in (3, 4, 5, 6)]
    return [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]


def test_every_real_expected_answer_gets_the_full_reward(real_rows: list[dict[str, Any]]) -> None:
    assert len(real_rows) == 400
    for row in real_rows:
        response = f"<think>Let me see.</think><answer>{row['solution_text_format']}</answer>"
        solution = dict(zip(row["names"], row["solution"], strict=True))
        for answer in (
            row["solution_text_format"],
            row["solution_text"],
            row["reward_model"]["ground_truth"],
            solution,
        ):
            assert SENTENCES.verify(response, answer) == Verdict(reward=1.0, outcome=Outcome.CORRECT)
        assert judge(f"<answer>{row['solution_text']}</answer>", row["solution_text_format"]) is Outcome.CORRECT


def test_every_real_answer_with_one_role_flipped_gets_no_reward(real_rows: list[dict[str, Any]]) -> None:
    judged = 0
    for row in real_rows:
        for person in range(len(row["names"])):
            flipped = [role != (index == person) for index, role in enumerate(row["solution"])]
            answer = render_answer(row["names"], tuple(flipped))
            assert SENTENCES.verify(
                f"<think></think><answer>{answer}</answer>", row["solution_text_format"]
            ) == Verdict(reward=0.0, outcome=Outcome.WRONG)
            compact = ["".join("FT"[role] for role in roles) for roles in (flipped, row["solution"])]
            assert COMPACT.verify(f"TTT:Fx={compact[0]}$", compact[1]).outcome is Outcome.WRONG
            judged += 1
    assert judged == 100 * (3 + 4 + 5 + 6)


@given(data=st.data())
def test_only_the_exact_solution_is_correct(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=8, unique=True))
    roles = st.lists(st.booleans(), min_size=len(names), max_size=len(names)).map(tuple)
    solution, given_roles = data.draw(roles), data.draw(roles)
    lines = data.draw(st.permutations(render_answer(names, given_roles).split("\n")))
    verdict = judge("<answer>" + "\n".join(lines) + "</answer>", render_answer(names, solution))
    assert verdict is (Outcome.CORRECT if given_roles == solution else Outcome.WRONG)


TAGS = ["<answer>", "</answer>", "</think>", "<think>"]
CLAUSES = [f"{name} is a {role}" for name in ("Zoey", "Jack", "Jackson") for role in ("knight", "knave")]
WORDS = ["Zoey", "Jack", " is ", " is not a ", "knight", "knave", "\n", ", ", " and ", "(1) ", " or "]


@given(st.lists(st.sampled_from([*TAGS, *CLAUSES, *WORDS])).map("".join))
@example("<answer>" + ", ".join(CLAUSES[::2]) + "</answer>")
def test_any_text_is_verified_and_only_a_single_answer_block_counts(response: str) -> None:
    if judge(response) in (Outcome.CORRECT, Outcome.WRONG):
        spoken = response.rpartition("</think>")[2]
        assert spoken.count("<answer>") == spoken.count("</answer>") == 1
        block = spoken.split("<answer>")[1].split("</answer>")[0]
        assert block.count("knight") + block.count("knave") == block.count("Zoey") + block.count("Jack") == 3


@pytest.mark.parametrize(
    "block",
    [
        GOLD,
        "(3) Jackson is a knight\n(1) Zoey is a knight\n(2) Jack is a knave",
        " zoey is a KNIGHT, jack is a Knave, and jackson is a Knight. ",
        "Zoey is a knight and Jack is a knave and Jackson is a knight",
        "**(1)** **Zoey** is a **knight**\n**(2)** *Jack* is a `knave`\n**(3)** _Jackson_ is a __knight__",
        "1. Zoey: knight\n2. Jack: Knave\n3. Jackson: a knight",
        "- Zoey - knight;\n- Jack = knave;\n- Jackson → knight!",
        "| Zoey | knight |\n| Jack | knave |\n| Jackson | knight |",
        "a) Zoey is the knight b) Jack is the knave c) Jackson is the knight",
        "Zoey (knight), Jack (knave), Jackson (knight)",
        "The identities are:\n(1) Zoey is a knight\n(2) Jack is a knave\n(3) Jackson is a knight",
        "\n\n(1)Zoey is a knight\n\n(2)Jack is a knave\n\n(3)Jackson is a knight\n\n",
    ],
)
def test_format_does_not_matter_if_the_meaning_is_clear(block: str) -> None:
    assert outcome(block) is Outcome.CORRECT
    assert outcome(block.replace("Jackson", "JACKSON")) is Outcome.CORRECT


@pytest.mark.parametrize(
    "block",
    [
        "",
        "Zoey is a knight, Jack is a knave",  # one missing
        GOLD + "\n(4) Liam is a knight",  # one too many
        GOLD + "\n(1) Zoey is a knight",  # named twice, the same
        GOLD + "\n(1) Zoey is a knave",  # both roles
        "(1) Zoey is a knight or a knave\n(2) Jack is a knave\n(3) Jackson is a knight",
        "(1) Zoey is a knight/knave\n(2) Jack is a knave\n(3) Jackson is a knight",
        "(1) Zoey is not a knave\n(2) Jack is a knave\n(3) Jackson is a knight",
        "(1) Zoey is a knight\n(2) Jack is not a knight\n(3) Jackson is a knight",
        "(1) Zoey is a knight\n(2) Liam is a knave\n(3) Jackson is a knight",  # another name
        "(1) Zoey is a knight\n(2) Jack is a knave or (3) Jackson is a knight",
        "If Zoey is a knight, Jack is a knave, Jackson is a knight",
        "Zoey is a knight, Jack is a knave, Jackson is a knight, unless all are knaves",
        "Zoey and Jackson are knights, Jack is a knave",
        "One of these is a knight: Zoey is a knight, Jack is a knave, Jackson is a knight",
        "Zoey is a knightly person, Jack is a knave, Jackson is a knight",
        "knight, knave, knight",
        "Zoey, Jack, Jackson",
    ],
)
def test_answer_without_exactly_one_role_per_person_is_unparseable(block: str) -> None:
    assert outcome(block) is Outcome.UNPARSEABLE


WRONG_BLOCK = "(1) Zoey is a knave\n(2) Jack is a knave\n(3) Jackson is a knight"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (GOLD, Outcome.UNPARSEABLE),
        ("", Outcome.UNPARSEABLE),
        (f"<answer>{GOLD}</answer>", Outcome.CORRECT),
        (f"<ANSWER>{GOLD}</ANSWER>", Outcome.CORRECT),
        (f"reasoning that the prompt opened</think> <answer>{GOLD}</answer><|im_end|>", Outcome.CORRECT),
        (f"<think>like <answer> (1) ... </answer>?</think><answer>{GOLD}</answer>", Outcome.CORRECT),
        (f"<think><answer>{WRONG_BLOCK}</answer></think><answer>{GOLD}</answer>", Outcome.CORRECT),
        (f"<think><answer>{GOLD}</answer></think><answer>{WRONG_BLOCK}</answer>", Outcome.WRONG),
        (f"<think><answer>{GOLD}</answer></think>", Outcome.UNPARSEABLE),  # answered only while thinking
        (f"<think><answer>{GOLD}</answer>", Outcome.UNPARSEABLE),  # thinking has not ended
        (f"</think><answer>{GOLD}</answer><answer>{GOLD}</answer>", Outcome.UNPARSEABLE),
        (f"</think><answer>{WRONG_BLOCK}</answer><answer>{GOLD}</answer>", Outcome.UNPARSEABLE),
        (f"</think><answer><answer>{GOLD}</answer></answer>", Outcome.UNPARSEABLE),
        (f"</think><answer>{GOLD}", Outcome.UNPARSEABLE),  # truncated
        (f"</think>{GOLD}</answer>", Outcome.UNPARSEABLE),
        (f"</think></answer>{GOLD}<answer>", Outcome.UNPARSEABLE),
    ],
)
def test_answer_is_the_only_block_after_the_thinking(response: str, expected: Outcome) -> None:
    assert judge(response) is expected


def test_every_documented_form_of_expected_answers_is_accepted() -> None:
    response = f"<answer>{GOLD}</answer>"
    for answer in (
        "Zoey is a knight, Jack is a knave, and Jackson is a knight.",
        {"Zoey": True, "Jack": False, "Jackson": True},
        {"Zoey": "knight", "Jack": "Knave", "Jackson": "knight"},
        {"solution_text_format": GOLD, "statements": "..."},
    ):
        assert judge(response, answer) is Outcome.CORRECT
        assert judge(f"<answer>{WRONG_BLOCK}</answer>", answer) is Outcome.WRONG


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "TFT",
        "Zoey is a spy\nJack is odd",
        GOLD + "\n(4) Zoey is a knave",
        {},
        {"Zoey": 3, "Jack": True},
        {"Zoey": True},
        None,
        3,
    ],
)
def test_malformed_expected_answer_is_a_data_error(answer: Any) -> None:
    with pytest.raises(DataError, match="answer of a puzzle"):
        SENTENCES.verify(f"<answer>{GOLD}</answer>", answer)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("TTT:TFxTTF:FxTFT:TFT=TFT$", Outcome.CORRECT),
        ("TTT:TFxTTF:FxTFT:TFT=TFT", Outcome.CORRECT),
        ("T T T : F x = T F T $", Outcome.CORRECT),  # a tokenizer that decodes with spaces
        ("=TFT", Outcome.CORRECT),
        ("TTT:TTT=TTT$", Outcome.WRONG),
        ("TTT:TFxTFT:TFT", Outcome.UNPARSEABLE),
        ("TFT", Outcome.UNPARSEABLE),
        ("=TF", Outcome.UNPARSEABLE),  # truncated
        ("=TFTF", Outcome.UNPARSEABLE),
        ("=TFT$TFT", Outcome.UNPARSEABLE),
        ("=TFx", Outcome.UNPARSEABLE),
        ("=tft", Outcome.UNPARSEABLE),
        ("=TTT=TFT", Outcome.UNPARSEABLE),  # two answers
        ("=", Outcome.UNPARSEABLE),
        ("", Outcome.UNPARSEABLE),
    ],
)
def test_compact_answer_is_the_letters_after_the_only_equals_sign(response: str, expected: Outcome) -> None:
    verdict = COMPACT.verify(response, "TFT")
    assert verdict == Verdict(reward=1.0 if expected is Outcome.CORRECT else 0.0, outcome=expected)


@pytest.mark.parametrize("answer", ["", "T", "TFTFTFTFT", "TXT", GOLD, None])
def test_malformed_compact_answer_is_a_data_error(answer: Any) -> None:
    with pytest.raises(DataError, match="2 to 8 letters"):
        COMPACT.verify("=TFT", answer)


def test_unknown_verifiers_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"name.*'chess'"):
        build_verifier({"name": "chess"})
    with pytest.raises(ConfigError, match="forms"):
        build_verifier({"name": "knights_knaves", "forms": "compact"})
    with pytest.raises(ConfigError, match=r"form.*'prose'"):
        build_verifier({"name": "knights_knaves", "form": "prose"})
    with pytest.raises(ConfigError, match="name"):
        build_verifier({})
    assert build_verifier(KnightsKnavesVerifierConfig(name="knights_knaves", form="compact")) == COMPACT


def test_verifier_processes_start_without_torch_or_transformers() -> None:
    program = (
        "import sys, rlad.verifiers, rlad.data.knights_knaves.generate, rlad.data.prompt_files\n"
        "print(sorted({'torch', 'transformers', 'ray', 'pyarrow'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    "hostile", [" ", "_", "Zoey", "Zoey is ", "a__", "- ", "(", "<answer>", "<think>", "=", "T", "knight "]
)
def test_verification_time_is_linear_in_the_length_of_a_response(hostile: str) -> None:
    for response in (hostile * 100_000, "<answer>Zoey" + hostile * 100_000 + "</answer>"):
        started = time.process_time()
        judge(response)
        COMPACT.verify(response, "TFT")
        assert time.process_time() - started < 2  # about 0.05 s; quadratic time would take minutes


@pytest.mark.parametrize(
    ("form", "response", "answer"),
    [
        ("sentences", "<answer>(1) Zoey is a knight\n(2) Liam is a knave</answer>", "liam: knave, zoey: knight"),
        (
            "sentences",
            "<think>no</think><answer>**Liam**: Knave, and Zoey → knight.</answer>",
            "liam: knave, zoey: knight",
        ),
        ("sentences", "<answer>Zoey is a knight, Zoey is a knave</answer>", None),
        ("sentences", "<answer>I cannot tell</answer>", None),
        ("sentences", "Zoey is a knight, Liam is a knave", None),
        ("compact", "TT:FxTF:TF=TF$", "TF"),
        ("compact", "T F = T F", "TF"),
        ("compact", "TF=TF=FT$", None),
        ("compact", "TFTF", None),
    ],
)
def test_equal_answers_have_one_canonical_form(form: str, response: str, answer: str | None) -> None:
    assert build_verifier({"name": "knights_knaves", "form": form}).answer_of(response) == answer
