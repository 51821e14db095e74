"""Working directory of a job: ignore files, size limits, and reproducible packing."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from pipelines.jobs import working_directory
from pipelines.jobs.working_directory import read_working_directory
from rlad.errors import JobError

MIB = 2**20


def write(root: Path, files: dict[str, str | int]) -> Path:
    """Write files by path. An integer makes a sparse file of that many bytes."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            with path.open("wb") as file:
                file.truncate(content)
    return root


def test_ignore_files_apply_to_their_folder_and_the_deepest_wins(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            ".gitignore": "*.log\n/runs/\nbuild/\n",
            ".rladignore": "docs/\n!docs/\n*.parquet\n!keep.parquet\n",
            "a.py": "",
            "a.log": "",
            "runs/x/metrics.jsonl": "",
            "sub/runs/kept.txt": "",
            "sub/build/left.o": "",
            "sub/.gitignore": "!important.log\nprivate.txt\n",
            "sub/important.log": "",
            "sub/other.log": "",
            "sub/private.txt": "",
            "private.txt": "",
            "docs/page.md": "",
            "big.parquet": "",
            "deep/keep.parquet": "",
            ".git/config": "",
            ".venv/lib/x.py": "",
            "pkg/__pycache__/a.pyc": "",
        },
    )
    assert list(read_working_directory(root).sizes) == [
        ".gitignore",
        ".rladignore",
        "a.py",
        "deep/keep.parquet",
        "docs/page.md",
        "private.txt",
        "sub/.gitignore",
        "sub/important.log",
        "sub/runs/kept.txt",
    ]


def test_links_to_files_inside_are_uploaded_and_links_to_folders_are_not(tmp_path: Path) -> None:
    write(tmp_path, {"outside/config.yaml": "a: 1", "outside/huge.bin": 200 * MIB})
    root = write(tmp_path / "project", {"a.py": "", "configs/run.yaml": "a: 1"})
    (root / "config.yaml").symlink_to(root / "configs" / "run.yaml")
    (root / "outside.yaml").symlink_to(tmp_path / "outside" / "config.yaml")
    (root / "data").symlink_to(tmp_path / "outside")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    directory = read_working_directory(root)
    assert directory.sizes == {"a.py": 0, "config.yaml": 4, "configs/run.yaml": 4}
    assert directory.left_out == ("gone", "outside.yaml")


def test_run_directory_is_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.py": "", "runs/mine/export/model.safetensors": 200 * MIB})
    assert list(read_working_directory(root, without=[root / "runs" / "mine"]).sizes) == ["a.py"]


def test_too_large_directory_is_refused_with_its_largest_folders(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "a.py": "",
            "data/raw/2024/x.parquet": 150 * MIB,
            "data/note.txt": "n",
            "models/m.bin": 30 * MIB,
            "models/n.bin": 10 * MIB,
        },
    )
    with pytest.raises(JobError) as raised:
        read_working_directory(root)
    message = str(raised.value)
    assert (
        f"{root} has 190.0 MiB, the limit is 96.0 MiB; largest folders: data/raw/2024/ 150.0 MiB, models/ 40.0 MiB;"
        in message
    )
    assert str(root / ".rladignore") in message
    (root / ".rladignore").write_text("data/\nmodels/\n")
    assert read_working_directory(root).num_bytes < 100


def test_too_many_files_are_refused_before_all_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, {f"crops/{number}.txt": "" for number in range(12)} | {"z.py": ""})
    monkeypatch.setattr(working_directory, "MAX_FILES", 10)
    with pytest.raises(JobError, match=r"more than 10 files, most of them in crops/ 11 files"):
        read_working_directory(root)


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "is not a directory"), ("empty", "contains no files to upload")]
)
def test_missing_or_empty_directory_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=message):
        read_working_directory(tmp_path / name)


def test_equal_files_pack_to_equal_bytes_independent_of_their_times(tmp_path: Path) -> None:
    root = write(tmp_path / "project", {"a.py": "print()", "sub/run.sh": "echo"})
    (root / "sub" / "run.sh").chmod(0o755)
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    read_working_directory(root).pack(first)
    os.utime(root / "a.py", (1, 1))
    read_working_directory(root).pack(second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist() == ["a.py", "sub/run.sh"]
        assert archive.read("a.py") == b"print()"
        assert archive.getinfo("sub/run.sh").external_attr >> 16 == 0o755


def test_folder_is_held_if_any_of_its_files_is_uploaded(tmp_path: Path) -> None:
    directory = read_working_directory(write(tmp_path, {"data/x.jsonl": ""}))
    assert directory.holds("data")
    assert directory.holds("./data/x.jsonl")
    assert not directory.holds("dat")
    assert not directory.holds("../data")
