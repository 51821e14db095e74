"""Sample recorder: an actor that fetches logged groups from the object store and writes them to the sample log.

Token data goes from the object store to this process and to the disk, and never through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.experience.group import ExperienceGroup
from actors.remote_errors import translated
from actors.verifier.worker import load_fast_tokenizer
from rlad.contracts import ScoredGroup
from rlad.errors import RladError
from rlad.samples.log import LoggedGroup, ResponseText, SampleLog
from rlad.tokenizers.token_texts import token_texts

# Deadline for the columns of a group, which are in the object store already.
_FETCH_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleNotice:
    """A sampled group to log.

    Attributes:
        group: The group. Its references are fetched by the recorder.
        is_dropped: Whether another group took its place, so that it was not trained on.
        worker: Name of the rollout worker.
    """

    group: ExperienceGroup
    is_dropped: bool
    worker: str


class SampleRecorder:
    """Actor that writes the sample log of a run, one step after the other."""

    def __init__(self, folder: str, *, tokenizer_path: str, max_bytes: int, last_step: int) -> None:
        """
        Args:
            folder: Folder of the log.
            tokenizer_path: Location of the model whose tokenizer decodes the responses.
            max_bytes, last_step: As for `SampleLog`.

        Raises:
            ConfigError: The model has no `tokenizer.json`.
            StorageError: The disk refused the folder.
        """
        self._log = SampleLog(Path(folder), max_bytes=max_bytes, last_step=last_step)
        self._tokenizer = load_fast_tokenizer(tokenizer_path)

    def write_step(self, step: int, notices: Sequence[SampleNotice], left_out: int) -> int:
        """Write the part of a step.

        Args:
            step: Number of trained steps, so the first is 1.
            notices: Groups to log.
            left_out: Number of chosen groups that are not among them.

        Returns:
            Number of groups that were lost with the node that held them.

        Raises:
            StorageError: The disk refused the part.
        """
        groups, lost = [], 0
        for notice in notices:
            try:
                with translated(who="the object store"):
                    columns = ray.get(notice.group.all_refs, timeout=_FETCH_TIMEOUT_S)
            except RladError:
                lost += 1
                continue
            groups.append(self._logged(notice, notice.group.scored_group(columns)))
        self._log.write(step, groups, left_out=left_out + lost)
        return lost

    def _logged(self, notice: SampleNotice, scored: ScoredGroup) -> LoggedGroup:
        group, responses = scored.group, []
        for index in range(group.num_responses):
            text, ends = token_texts(self._tokenizer, group.response_ids[group.response(index)].tolist())
            responses.append(ResponseText(text=text, token_ends=ends))
        return LoggedGroup(
            scored=scored,
            prompt=self._tokenizer.decode(group.prompt_ids.tolist(), skip_special_tokens=False),
            responses=responses,
            is_dropped=notice.is_dropped,
            worker=notice.worker,
        )
