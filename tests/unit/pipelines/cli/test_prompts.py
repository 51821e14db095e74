"""`rlad prompts`: how a file is read, on 80 columns and as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from pipelines.cli.main import app
from rlad.errors import ConfigError, DataError

LONG = "A shelf holds 1 book and 4 more arrive. " * 30


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts(*arguments: str | Path) -> Result:
    runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    return runner.invoke(app, ["prompts", *map(str, arguments)], catch_exceptions=True)


def as_json(*arguments: str | Path) -> Any:
    result = prompts(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0])
    fast.chat_template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    fast.save_pretrained(folder)
    return folder


def test_report_shows_layout_columns_counts_and_first_prompts(tmp_path: Path) -> None:
    rows = [{"question": f"{LONG}{number}", "answer": f"#### {number}"} for number in (1, 2, 2, 3, 4)]
    path = write(tmp_path / "rows.jsonl", *rows, {"question": "q", "answer": "5"})
    result = prompts(path, "invalid_rows=drop", "--first", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == str(path)
    assert max(map(len, lines[1:])) <= 80
    text = " ".join(result.stdout.split())
    for expected in (
        "jsonl, layout: GSM8K, 6 rows columns used: question, answer",
        "4 prompts of 6 rows tasks: math (4); each needs an entry in `verifiers` chat template: applied to 4 prompts",
        "left out: 1 duplicate, 1 invalid row",
        "line 6: missing answer",
        "user: A shelf holds",
        "(1201 characters)",
        "answer: 2",
    ):
        assert expected in text
    assert "answer: 3" not in text


def test_json_holds_the_same_report(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"q": "1+1?", "r": 2.0, "level": 3})
    report = as_json(path, "columns={prompt: q, answer: r}", "task=sums", 'prompt_suffix=" Answer:"')
    assert report["files"] == [
        {
            "path": str(path),
            "format": "jsonl",
            "compression": None,
            "version": None,
            "layout": "columns",
            "columns": ["q", "r", "level"],
            "used": ["q", "r"],
            "rows": 1,
        }
    ]
    assert (report["rows"], report["prompts"], report["made_ids"], report["tasks"]) == (1, 1, 1, {"sums": 1})
    [first] = report["first"]
    assert first["location"] == f"{path}, line 1"
    assert first["prompt"] == [{"role": "user", "content": "1+1? Answer:"}]
    assert (first["answer"], first["metadata"]) == ("2", {"level": 3})
    assert as_json(path, "columns.prompt=q", "columns.answer=r")["prompts"] == 1


def test_model_shows_the_rendered_prompt_its_tokens_and_the_lengths(tmp_path: Path, model: Path) -> None:
    rows = [{"question": "x" * length, "answer": "1"} for length in (2, 5, 9)]
    path = write(tmp_path / "rows.jsonl", *rows)
    report = as_json(path, "--model", model, "--max-prompt-tokens", "7")
    assert report["rendered"]["text"] == "<xx>"
    assert report["rendered"]["tokens"] == ["<", "x", "x", ">"]
    assert len(report["rendered"]["token_ids"]) == 4
    assert report["tokens"] == {"shortest": 4, "median": 7, "longest": 11, "limit": 7, "too_long": 1}
    text = " ".join(prompts(path, "--model", model, "--max-prompt-tokens", "7").stdout.split())
    assert "text: '<xx>'" in text
    assert "longer than 7 tokens: 1; a run leaves them out" in text


def test_prompts_that_also_occur_in_another_file_are_counted(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *({"question": f"{n} + 1?", "answer": "1"} for n in (1, 2, 3)))
    message = [{"role": "user", "content": "2 +  1?"}]
    test = write(tmp_path / "test.jsonl", {"id": "x", "prompt": message, "task": "sums", "answer": "3"})
    report = as_json(train, "--against", test)
    assert report["overlap"] == {
        "with": str(test),
        "prompts": 1,
        "first": [[f"{train}, line 2", f"{test}, line 1"]],
    }
    # A long path is broken across lines.
    assert f"alsoin{test}:1prompt" in "".join(prompts(train, "--against", test).stdout.split())


def test_run_shows_its_mixture_and_its_evaluation_prompts(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": str(n)} for n in range(8)]
    for name, some in (("easy", rows[:2]), ("hard", rows[2:]), ("test", rows[1:3])):
        write(tmp_path / f"{name}.jsonl", *some)
    config = tmp_path / "run.yaml"
    text = (Path(__file__).parents[4] / "configs/qwen3_8b_math_30k.yaml").read_text()
    parts = "".join(
        f"    {name}: {{weight: {weight}, prompts: {{path: {tmp_path}/{name}.jsonl, source: file, task: {task}}}}}\n"
        for name, weight, task in (("easy", 1, "sums"), ("hard", 3, "math"))
    )
    text = text.replace(
        "prompts: {source: file, path: data/skywork_or1_math.jsonl}\n",
        f"prompts:\n  source: mixture\n  parts:\n{parts}",
    )
    config.write_text(text.replace("data/aime24.jsonl", str(tmp_path / "test.jsonl")))
    report = as_json(config, "--first", "1")
    assert report["training"]["parts"] == {
        "easy": {"weight": 0.25, "prompts": 2, "entries": 2},
        "hard": {"weight": 0.75, "prompts": 6, "entries": 6},
    }
    assert report["training"]["tasks"] == {"math": 6, "sums": 2}
    assert [prompt["metadata"]["part"] for prompt in report["training"]["first"]] == ["easy", "hard"]
    assert report["training"]["first"][0]["id"].startswith("easy/")
    assert report["evaluation"]["overlap"]["prompts"] == 2
    text = " ".join(prompts(config, "evaluation.samples=2").stdout.split())
    assert "part hard: 6 prompts, 75.0% of the training, 6 an epoch" in text
    assert "also in the training prompts: 2 prompts" in text


def test_refused_file_names_row_and_remedy(tmp_path: Path, model: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"a": 1, "b": 2})
    for arguments, kind, complaint in [
        ((path,), DataError, f"{path}, line 1: the layout is not known; the columns are: a, b"),
        ((path, "nonsense"), ConfigError, "of the form key=value"),
        ((path, "tsak=math"), ConfigError, "tsak: unknown key; did you mean `task`?"),
        ((path, "columns={question: a}"), ConfigError, "columns"),
        ((path, "encoding=klingon"), ConfigError, "unknown encoding 'klingon'"),
        ((path, "--max-prompt-tokens", "7"), ConfigError, "requires --model"),
        ((tmp_path / "none.jsonl",), DataError, "no prompt file at"),
        ((path, "source=hbu"), ConfigError, "expected source=hub, or no source for a file; got source=hbu"),
        (("a/b/c", "source=hub"), ConfigError, "dataset"),
    ]:
        result = prompts(*arguments)
        assert isinstance(result.exception, kind), result.output
        assert complaint in str(result.exception)


def test_markers_of_templates_in_an_error_are_printed_as_they_stand(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli.main import main

    baked = {"id": "b", "prompt": [{"role": "user", "content": "x [/INST]"}], "task": "math", "answer": "1"}
    path = write(tmp_path / "rows.jsonl", baked)
    monkeypatch.setattr("sys.argv", ["rlad", "prompts", str(path), "--model", str(model)])
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert f"{path}, line 1: prompt 'b': a message contains the template marker '[/INST]'" in capsys.readouterr().err
