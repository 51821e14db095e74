"""The sample log with real actors: groups reach the disk through the object store, and no failure reaches the run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
from ray.actor import ActorHandle
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from actors.experience.group import ExperienceGroup, WeightedScores
from actors.messages import GroupSummary
from actors.samples.recorder import SampleNotice, SampleRecorder
from pipelines.training.samples import SampleLogger
from rlad.samples.log import parts, size_of
from rlad.samples.reading import read_samples
from rlad.testing.records import make_group, make_teacher_scores, make_verdicts

LETTERS = "abcdefghij"


def tokenizer_at(folder: Path) -> str:
    """Save a tokenizer of letters, and return its folder."""
    tokenizer = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def recorder_at(tmp_path: Path) -> ActorHandle:
    return (
        ray.remote(SampleRecorder)
        .options(num_cpus=0)
        .remote(
            str(tmp_path / "samples"),
            tokenizer_path=tokenizer_at(tmp_path / "student"),
            max_bytes=2**30,
            last_step=0,
        )
    )


def experience(uid: str, *, teachers: dict[float, float], attempt: int = 0, length: int = 3) -> ExperienceGroup:
    """Return a group of two responses in the object store.

    Args:
        uid: Uid of the group.
        teachers: Log-probability of all tokens by the weight of the teacher that gives it.
        attempt: Attempt of the group.
        length: Tokens of each response.
    """
    ids = [list(range(length)), list(range(length))]
    group = make_group(ids, prompt=[7, 8], uid=uid, attempt=attempt)
    verdicts = make_verdicts(group, [1.0, 0.0])
    scores = {weight: make_teacher_scores(group, value) for weight, value in teachers.items()}
    return ExperienceGroup(
        summary=GroupSummary.of(group),
        columns=ray.put(group.to_columns()),
        verdicts=verdicts,
        rewards=(1.0, 0.0),
        teacher_scores=tuple(
            WeightedScores(weight=weight, scores=ray.put(each.to_columns())) for weight, each in scores.items()
        ),
    )


def logger_of(recorder: ActorHandle, *, share: float = 1.0, max_step_bytes: int = 2**30) -> SampleLogger:
    return SampleLogger(recorder, share=share, max_step_bytes=max_step_bytes, max_pending=3)


async def test_groups_of_a_step_are_logged_with_their_teachers_mixture(tmp_path: Path) -> None:
    samples = logger_of(recorder_at(tmp_path))
    mixed = experience("mixed", teachers={0.5: -1.0, 0.25: -3.0})
    samples.add(4, mixed, is_dropped=False, worker="rollout-1")
    samples.add(4, experience("dropped", teachers={}), is_dropped=True, worker="rollout-0")
    samples.add(4, experience("abandoned", teachers={}), is_dropped=False, worker="rollout-0")
    samples.add(5, experience("later", teachers={}), is_dropped=False, worker="rollout-0")
    samples.write_step(4, ["mixed", "dropped"])
    await samples.close()
    rows = read_samples(tmp_path / "samples", limit=9)
    assert [(row["step"], row["group_uid"], row["response"]) for row in rows] == [
        (5, "mixed", "abc"),
        (5, "mixed", "abc"),
        (5, "dropped", "abc"),
        (5, "dropped", "abc"),
    ]
    # (0.5 e^-1 + 0.25 e^-3) / 0.75
    expected = np.log((0.5 * np.exp(-1) + 0.25 * np.exp(-3)) / 0.75)
    np.testing.assert_allclose(rows[0]["teacher_logprobs"], expected, rtol=1e-5)
    assert rows[2]["teacher_logprobs"] is None
    assert (rows[0]["prompt"], rows[0]["worker"], rows[2]["is_dropped"]) == ("hi", "rollout-1", True)
    assert samples.left_out == 0


async def test_group_that_was_sampled_again_is_logged_once_as_it_was_trained_on(tmp_path: Path) -> None:
    samples = logger_of(recorder_at(tmp_path))
    for attempt in (0, 1):
        group = experience("g", teachers={}, attempt=attempt)
        samples.add(0, group, is_dropped=False, worker=f"rollout-{attempt}")
    samples.write_step(0, ["g"])
    await samples.close()
    rows = read_samples(tmp_path / "samples", limit=9)
    assert [(row["attempt"], row["worker"]) for row in rows] == [(1, "rollout-1"), (1, "rollout-1")]


async def test_share_chooses_the_same_groups_each_time() -> None:
    class Listening:
        """Stand-in for the recorder that remembers the groups of each part."""

        def __init__(self) -> None:
            self._parts: list[set[str]] = []

        def write_step(self, step: int, notices: list[SampleNotice], left_out: int) -> int:
            self._parts.append({notice.group.uid for notice in notices})
            return 0

        def parts(self) -> list[set[str]]:
            return self._parts

    uids = [f"set:0:{number}" for number in range(100)]
    group = experience("any", teachers={})
    recorder = ray.remote(Listening).options(num_cpus=0).remote()
    for order in (uids, uids[::-1]):
        samples = logger_of(recorder, share=0.25)
        for uid in order:
            named = replace(group, summary=replace(group.summary, uid=uid))
            samples.add(0, named, is_dropped=False, worker="rollout-0")
        samples.write_step(0, uids)
        await samples.close()
    first, second = ray.get(recorder.parts.remote(), timeout=60)
    assert first == second
    assert 10 <= len(first) <= 40


async def test_step_takes_no_more_than_its_part_of_the_log(tmp_path: Path) -> None:
    group = experience("any", teachers={}, length=10)
    samples = logger_of(recorder_at(tmp_path), max_step_bytes=2 * size_of(group.summary.num_tokens))
    uids = [f"g:{number}" for number in range(5)]
    for uid in uids:
        samples.add(0, experience(uid, teachers={}, length=10), is_dropped=False, worker="rollout-0")
    samples.write_step(0, uids)
    await samples.close()
    assert [row["group_uid"] for row in read_samples(tmp_path / "samples", limit=99)] == ["g:0", "g:0", "g:1", "g:1"]
    assert samples.left_out == 3


async def test_lost_recorder_costs_samples_and_not_the_run(tmp_path: Path) -> None:
    recorder = recorder_at(tmp_path)
    samples = logger_of(recorder)
    samples.add(0, experience("g:0", teachers={}), is_dropped=False, worker="rollout-0")
    samples.write_step(0, ["g:0"])
    await samples.close()
    ray.kill(recorder)
    samples.add(1, experience("g:1", teachers={}), is_dropped=False, worker="rollout-0")
    samples.write_step(1, ["g:1"])
    await samples.close()
    assert list(parts(tmp_path / "samples")) == [1]
    assert samples.left_out == 1


async def test_slow_recorder_costs_samples_and_does_not_hold_up_the_run() -> None:
    class Stuck:
        async def write_step(self, *_: object) -> None:
            await asyncio.Event().wait()  # until the actor ends

    samples = logger_of(ray.remote(Stuck).options(num_cpus=0).remote())
    for step in range(5):
        samples.add(step, experience(f"g:{step}", teachers={}), is_dropped=False, worker="rollout-0")
        samples.write_step(step, [f"g:{step}"])
    assert samples.left_out == 2
