"""The data of groups, as a learner rank fetches them from the object store."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.experience.group import ExperienceGroup
from rlad.contracts import ScoredGroup
from rlad.errors import LostGroupsError, RladError

# A node that answers no more is found dead earlier, and its objects are lost then.
_FETCH_TIMEOUT_S = 120.0
# Time for each group, once one of them is known to be lost or late.
_PROBE_TIMEOUT_S = 10.0


def fetch_groups(groups: Mapping[str, ExperienceGroup]) -> dict[str, ScoredGroup]:
    """Fetch the columns of groups in one request. Arrays are views of shared memory, except mixtures of teachers.

    Raises:
        LostGroupsError: Objects were lost with the node or the process that held them, or did not arrive in time.
    """
    refs = [ref for each in groups.values() for ref in each.all_refs]
    try:
        columns = iter(ray.get(refs, timeout=_FETCH_TIMEOUT_S) if refs else [])
    except (ObjectLostError, GetTimeoutError):
        lost = [(each.uid, each.attempt) for each in groups.values() if not _is_available(each.all_refs)]
        if lost:
            raise LostGroupsError(lost) from None
        columns = iter(ray.get(refs, timeout=_PROBE_TIMEOUT_S))
    return {uid: each.scored_group(list(itertools.islice(columns, len(each.all_refs)))) for uid, each in groups.items()}


def lost_in(errors: Sequence[RladError | None]) -> list[tuple[str, int]]:
    """Return the groups that any rank has lost; empty if a rank failed for another reason."""
    raised = [error for error in errors if error is not None]
    if not all(isinstance(error, LostGroupsError) for error in raised):
        return []
    return sorted({group for error in raised if isinstance(error, LostGroupsError) for group in error.groups})


def _is_available(refs: Sequence[Any]) -> bool:
    try:
        ray.get(list(refs), timeout=_PROBE_TIMEOUT_S)
    except (ObjectLostError, GetTimeoutError):
        return False
    return True
