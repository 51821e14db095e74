"""Recognition of layouts by the first row of a file."""

from __future__ import annotations

from rlad.data.knights_knaves.prompts import Form
from rlad.data.layouts.base import Columns, Layout
from rlad.data.layouts.frameworks.alpaca import AlpacaLayout
from rlad.data.layouts.frameworks.conversations import ConversationLayout
from rlad.data.layouts.frameworks.dapo import DapoLayout
from rlad.data.layouts.frameworks.eurus import EurusLayout
from rlad.data.layouts.frameworks.openrlhf import OpenRlhfLayout
from rlad.data.layouts.frameworks.skywork import SkyworkLayout
from rlad.data.layouts.frameworks.trl import TrlLayout
from rlad.data.layouts.frameworks.verifiers import VerifiersLayout
from rlad.data.layouts.frameworks.verl import VerlLayout
from rlad.data.layouts.generic import QuestionAnswerLayout
from rlad.data.layouts.mathematics.big_math import BIG_MATH
from rlad.data.layouts.mathematics.deepscaler import DEEPSCALER
from rlad.data.layouts.mathematics.gsm8k import Gsm8kLayout
from rlad.data.layouts.mathematics.math import MATH
from rlad.data.layouts.mathematics.numina import NUMINA
from rlad.data.layouts.mathematics.open_r1 import OPEN_R1
from rlad.data.layouts.mathematics.problem import ProblemLayout
from rlad.data.layouts.own import OwnLayout
from rlad.data.layouts.programming.apps import AppsLayout
from rlad.data.layouts.programming.humaneval import HumanEvalLayout
from rlad.data.layouts.programming.listed_tests import ListedTestsLayout
from rlad.data.layouts.programming.livecodebench import LiveCodeBenchLayout
from rlad.data.layouts.programming.mbpp import MbppLayout
from rlad.data.layouts.programming.taco import TACO
from rlad.data.layouts.puzzles.countdown import CountdownLayout
from rlad.data.layouts.puzzles.logic_rl import LogicRlLayout
from rlad.data.layouts.puzzles.multiple_choice import MultipleChoiceLayout


def layouts(form: Form = "sentences") -> tuple[Layout, ...]:
    """Return all layouts, the most specific first."""
    return (
        LogicRlLayout(form),
        *(DapoLayout(), SkyworkLayout(), EurusLayout(), VerlLayout()),
        *(LiveCodeBenchLayout(), TACO, AppsLayout(), MbppLayout(), HumanEvalLayout(), ListedTestsLayout()),
        VerifiersLayout(),
        OwnLayout(),
        *(CountdownLayout(), MultipleChoiceLayout(), Gsm8kLayout()),
        *(OPEN_R1, BIG_MATH, NUMINA, MATH, DEEPSCALER),
        ProblemLayout(name="problem and answer", required=("answer",)),
        ProblemLayout(name="problem and solution", required=("solution",)),
        TrlLayout(),
        *(OpenRlhfLayout(), AlpacaLayout()),
        ConversationLayout(name="ShareGPT", column="conversations"),
        ConversationLayout(name="messages", column="messages"),
        QuestionAnswerLayout(),
    )


def recognise(row: Columns, form: Form = "sentences") -> Layout | None:
    """Return the layout of a file from its first row; None if it is unknown."""
    return next((layout for layout in layouts(form) if layout.matches(row)), None)
