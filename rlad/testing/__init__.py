"""Supported fakes for tests of code that uses rlad: records, a teacher service without a network, and a virtual clock.

Everything here is pure Python and numpy and keeps its interface between releases, like the rest of the public packages.
Stand-ins for the worker pools need the protocols of `pipelines`, which this package may not import; they are in
`pipelines.simulation.stand_ins`.
"""

from rlad.testing.records import make_group, make_scored_group, make_teacher_scores, make_verdicts
from rlad.testing.teacher_service import FakeTeacherService
from rlad.testing.virtual_time import StuckError, VirtualTimeLoop, run_in_virtual_time

__all__ = [
    "FakeTeacherService",
    "StuckError",
    "VirtualTimeLoop",
    "make_group",
    "make_scored_group",
    "make_teacher_scores",
    "make_verdicts",
    "run_in_virtual_time",
]
