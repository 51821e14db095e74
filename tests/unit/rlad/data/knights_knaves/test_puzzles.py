"""Statement grammar, solver, compact notation and its traces."""

from __future__ import annotations

import ast
import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlad.data.knights_knaves import compact
from rlad.data.knights_knaves.puzzle import Puzzle, Statements, candidates, evaluate, puzzle_from_statements, solve
from rlad.errors import DataError

# A says B is a knave; B says A is a knight and C a knave; C says A is a knight exactly if B is.
# A knight: B lies, so not (A knight and C knave), so C is a knight; C's claim "A exactly if B" is then false.
# Contradiction. A knave: B tells the truth, so A is a knight. Contradiction.
UNSOLVABLE = (
    ("lying", 1),
    ("and", ("telling-truth", 0), ("lying", 2)),
    ("<=>", ("telling-truth", 0), ("telling-truth", 1)),
)
# A says B is a knave; B says they are of one kind. A knight: B is a knave and lies, as they differ: fits. A knave: B is
# a knight, yet they differ: does not.
TWO_PEOPLE = (("lying", 1), ("<=>", ("telling-truth", 0), ("telling-truth", 1)))


def literals(num_people: int) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.sampled_from(["telling-truth", "lying"]), st.integers(0, num_people - 1))


def any_statements(min_people: int = 2, max_people: int = 8) -> st.SearchStrategy[Statements]:
    def of(num_people: int) -> st.SearchStrategy[Statements]:
        literal = literals(num_people)
        statement = st.one_of(
            literal,
            st.tuples(st.just("not"), literal),
            st.tuples(st.sampled_from(["and", "or", "->", "<=>"]), literal, literal),
        )
        return st.tuples(*[statement] * num_people)

    return st.integers(min_people, max_people).flatmap(of)


def slow_solutions(statements: Statements) -> set[tuple[bool, ...]]:
    """Solve by brute force over Python expressions, independent of the package."""

    def expression(statement: tuple[Any, ...]) -> str:
        kind, *parts = statement
        if kind == "telling-truth":
            return f"roles[{parts[0]}]"
        if kind == "lying":
            return f"(not roles[{parts[0]}])"
        inner = [expression(part) for part in parts]
        return {
            "not": "(not {0})",
            "and": "({0} and {1})",
            "or": "({0} or {1})",
            "->": "({0} <= {1})",  # False <= True: implication
            "<=>": "({0} == {1})",
        }[kind].format(*inner)

    claims = " and ".join(
        f"roles[{speaker}] == {expression(statement)}" for speaker, statement in enumerate(statements)
    )
    holds = eval(f"lambda roles: {claims}")  # noqa: S307
    return {roles for roles in itertools.product([True, False], repeat=len(statements)) if holds(roles)}


@given(any_statements(max_people=6))
def test_solver_equals_brute_force(statements: Statements) -> None:
    solutions = solve(statements)
    assert set(solutions) == slow_solutions(statements)
    assert len(set(solutions)) == len(solutions)


@pytest.mark.parametrize(
    ("statement", "truths"),  # under (A knight, B knight), (A, not B), (not A, B), (neither)
    [
        (("telling-truth", 0), [True, True, False, False]),
        (("lying", 1), [False, True, False, True]),
        (("not", ("lying", 1)), [True, False, True, False]),
        (("and", ("telling-truth", 0), ("telling-truth", 1)), [True, False, False, False]),
        (("or", ("telling-truth", 0), ("telling-truth", 1)), [True, True, True, False]),
        (("->", ("telling-truth", 0), ("telling-truth", 1)), [True, False, True, True]),
        (("<=>", ("telling-truth", 0), ("telling-truth", 1)), [True, False, False, True]),
    ],
)
def test_truth_tables_of_the_connectives(statement: tuple[Any, ...], truths: list[bool]) -> None:
    assert [evaluate(statement, roles) for roles in itertools.product([True, False], repeat=2)] == truths


def test_candidates_count_down_from_all_knights() -> None:
    assert candidates(2) == ((True, True), (True, False), (False, True), (False, False))


def test_solution_of_every_real_puzzle_is_unique_and_equals_the_sets(real_rows: list[dict[str, Any]]) -> None:
    for row in real_rows:
        puzzle = puzzle_from_statements(row["statements"], row["names"])
        assert list(puzzle.solution) == row["solution"]
        assert list(puzzle.names or ()) == row["names"]


def test_puzzle_without_a_unique_solution_is_refused() -> None:
    with pytest.raises(DataError, match="has 0"):
        puzzle_from_statements(UNSOLVABLE)
    with pytest.raises(DataError, match="has 2"):  # each calls the other a knave, so either can be the knight
        puzzle_from_statements("(('lying', 1), ('lying', 0))")
    with pytest.raises(DataError, match="the solution of .* must be"):
        Puzzle(statements=TWO_PEOPLE, solution=(False, True))
    assert Puzzle(statements=TWO_PEOPLE, solution=(True, False)).num_people == 2


@pytest.mark.parametrize(
    "statements",
    [
        "not python",
        "(('lying', 1),)",
        "(('lying', 1), ('lying', 2))",
        "(('lying', 1), ('lying', True))",
        "(('lying', 1), ('xor', ('lying', 0), ('lying', 1)))",
        "(('lying', 1), ('and', ('lying', 0)))",
        "(('lying', 1), ('not', ('not', ('lying', 0))))",
        "(('lying', 1), 3)",
        "7",
        "__import__('os').getcwd()",
    ],
)
def test_statements_outside_the_grammar_are_refused(statements: str) -> None:
    with pytest.raises(DataError):
        puzzle_from_statements(statements)


def test_statements_may_be_json_lists() -> None:
    assert (
        puzzle_from_statements([["lying", 1], ["<=>", ["telling-truth", 0], ["telling-truth", 1]]]).statements
        == TWO_PEOPLE
    )


def test_names_must_match_the_people() -> None:
    with pytest.raises(DataError, match="names"):
        puzzle_from_statements(TWO_PEOPLE, ["Zoey", "Zoey"])
    with pytest.raises(DataError, match="names"):
        puzzle_from_statements(TWO_PEOPLE, ["Zoey", "Liam", "Mia"])


def test_compact_prompt_of_a_puzzle_written_by_hand() -> None:
    statements = compact.parse_prompt("A:b;B:A&c;C:A=B;?")
    assert statements == UNSOLVABLE
    assert compact.render_prompt(puzzle_from_statements(TWO_PEOPLE)) == "A:b;B:A=B;?"
    assert compact.parse_prompt("A:~b;B:a|B;C:C>a;?") == (
        ("not", ("lying", 1)),
        ("or", ("lying", 0), ("telling-truth", 1)),
        ("->", ("telling-truth", 2), ("lying", 0)),
    )


def test_compact_notation_round_trips_every_real_puzzle(real_rows: list[dict[str, Any]]) -> None:
    prompts = set()
    for row in real_rows:
        prompt = compact.render_prompt(puzzle_from_statements(row["statements"]))
        assert compact.parse_prompt(prompt) == ast.literal_eval(row["statements"])
        assert set(prompt + compact.solution_trace(puzzle_from_statements(row["statements"]))) <= set(compact.ALPHABET)
        prompts.add(prompt)
    assert len(prompts) == 400


@given(any_statements().filter(lambda statements: len(solve(statements)) == 1))
def test_compact_notation_round_trips_the_whole_grammar(statements: Statements) -> None:
    assert compact.parse_prompt(compact.render_prompt(puzzle_from_statements(statements))) == statements


def test_alphabet_and_special_tokens_fit_into_32_symbols() -> None:
    assert len(set(compact.ALPHABET)) == len(compact.ALPHABET) == 26


@pytest.mark.parametrize(
    "text",
    ["", "?", "A:b;?", "A:b;B:a", "B:a;A:b;?", "A:b;B:c;?", "A:b;B:A&;?", "A:b;B:~~a;?", "A:b;B:a; ?", "A:b;;B:a;?"],
)
def test_text_outside_the_notation_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        compact.parse_prompt(text)


def test_trace_tries_candidates_in_order_and_stops_each_at_its_first_contradiction() -> None:
    # TT: A, a knight, says B is a knave: false, contradiction. TF: true as it should be; B, a knave, says both are of
    # one kind: false as it should be.
    assert compact.solution_trace(puzzle_from_statements(TWO_PEOPLE)) == "TT:FxTF:TF=TF"
    # A says C is a knight; B says A is a knave; C says A and B are knights.
    # TTT: A true, B false x; TTF: A false x; TFT: A true, B false as a knave's, C false x; TFF: A false x; FTT: A true
    # for a knave x; FTF: A false, B true, C false: all fit.
    puzzle = puzzle_from_statements(compact.parse_prompt("A:C;B:a;C:A&B;?"))
    assert compact.solution_trace(puzzle) == "TTT:TFxTTF:FxTFT:TFFxTFF:FxFTT:TxFTF:FTF=FTF"


def test_trace_of_every_real_puzzle_checks_step_by_step(real_rows: list[dict[str, Any]]) -> None:
    for row in real_rows:
        puzzle = puzzle_from_statements(row["statements"])
        steps, _, answer = compact.solution_trace(puzzle).partition("=")
        assert answer == "".join("FT"[role] for role in row["solution"])
        tried = steps.split("x")
        for number, step in enumerate(tried):
            candidate, _, values = step.partition(":")
            assert candidate == "".join("TF"[int(bit)] for bit in f"{number:0{puzzle.num_people}b}")
            roles = [letter == "T" for letter in candidate]
            expected = "".join("FT"[evaluate(statement, roles)] for statement in puzzle.statements[: len(values)])
            assert values == expected
            assert values[:-1] == candidate[: len(values) - 1]
            assert (values == candidate) == (number == len(tried) - 1)


def test_careless_reader_without_mistakes_gives_the_solution() -> None:
    puzzle = puzzle_from_statements(TWO_PEOPLE)
    assert compact.careless_trace(
        puzzle, random.Random(0), misread_probability=(0, 0), slip_probability=0
    ) == compact.solution_trace(puzzle)


def test_careless_reader_who_misreads_everything_solves_another_puzzle() -> None:
    # A: "B is a knave" is read as "B is a knight"; B's "exactly if" as and, or, or if.
    puzzle = puzzle_from_statements(TWO_PEOPLE)
    readings = [compact.parse_prompt(f"A:B;B:A{symbol}B;?") for symbol in "&|>"]
    expected = {compact.render_answer(solve(reading)[0]) for reading in readings if solve(reading)}
    traces = {
        compact.careless_trace(puzzle, random.Random(seed), misread_probability=(1, 1), slip_probability=0)
        for seed in range(50)
    }
    assert {trace.partition("=")[2] for trace in traces} == expected


def test_careless_traces_are_well_formed_often_wrong_and_seeded(real_rows: list[dict[str, Any]]) -> None:
    puzzles = [puzzle_from_statements(row["statements"]) for row in real_rows[:200]]
    traces = [compact.careless_trace(puzzle, random.Random(index)) for index, puzzle in enumerate(puzzles)]
    assert traces == [compact.careless_trace(puzzle, random.Random(index)) for index, puzzle in enumerate(puzzles)]
    assert all(set(trace) <= set("TF:x=") for trace in traces)
    num_correct = sum(
        trace.endswith("=" + compact.render_answer(puzzle.solution))
        for trace, puzzle in zip(traces, puzzles, strict=True)
    )
    assert 0.2 < num_correct / len(traces) < 0.8
