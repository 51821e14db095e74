"""What each pair of starter models is made of. A recipe's content names its folder in the cache, so a changed recipe is a new model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from rlad.data.knights_knaves.compact import ALPHABET
from rlad.errors import PlanError

Role = Literal["teacher", "student"]
ROLES: tuple[Role, Role] = ("teacher", "student")

CODE_REVISION = 1
"""Raise it when a change of the code, here or in the puzzles, makes other models of the same recipe."""

HEAD_DIM = 32
"""The smallest head size that vLLM's attention on CPU takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Size of a Qwen3-architecture model. Embeddings are not tied: with a vocabulary this small, tying saves nothing."""

    hidden_size: int
    num_layers: int
    num_heads: int
    feed_forward: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPhase:
    """Supervised training on one kind of traces.

    Attributes:
        traces: `correct`, or `careless`: those of a reader who mistakes statements for others.
        matrix_learning_rate: of Muon on the layers' matrices; None trains everything by AdamW.
        learning_rate: of AdamW on the rest.
    """

    traces: Literal["correct", "careless"]
    steps: int
    learning_rate: float
    matrix_learning_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRecipe:
    """How one of the two models is made."""

    shape: ModelShape
    phases: tuple[TrainingPhase, ...]
    seed: int

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterRecipe:
    """A teacher and a student over one tokenizer.

    Attributes:
        people: share of puzzles by number of people.
        training_puzzles: number of different puzzles, all of the train split; more steps than they fill are further epochs.
        tokens_per_step: padded tokens of a batch, prompts included.
        evaluation_puzzles: of the evaluation split, on which the finished models are measured.
    """

    name: str
    people: Mapping[int, float]
    training_puzzles: int
    tokens_per_step: int
    evaluation_puzzles: int
    teacher: RoleRecipe
    student: RoleRecipe

    def of(self, role: Role) -> RoleRecipe:
        return self.teacher if role == "teacher" else self.student

    def digest(self, role: Role) -> str:
        """16 hex digits that change with whatever changes this role's model, and with nothing of the other's."""
        content = asdict(self)
        for other in set(ROLES) - {role}:
            del content[other]
        canonical = json.dumps([CODE_REVISION, HEAD_DIM, ALPHABET, role, content], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_KK = StarterRecipe(
    name="kk",
    people={2: 0.1, 3: 0.4, 4: 0.5},
    training_puzzles=16_000,
    tokens_per_step=1024,
    evaluation_puzzles=300,
    teacher=RoleRecipe(
        shape=ModelShape(hidden_size=96, num_layers=4, num_heads=4, feed_forward=288),
        phases=(TrainingPhase(traces="correct", steps=2300, learning_rate=3e-3, matrix_learning_rate=0.02),),
        seed=0,
    ),
    student=RoleRecipe(
        shape=ModelShape(hidden_size=96, num_layers=3, num_heads=3, feed_forward=192),
        # The skill first, then a bad habit: a model merely trained too little lacks the skill that reinforcement could bring out.
        phases=(
            TrainingPhase(traces="correct", steps=2300, learning_rate=3e-3, matrix_learning_rate=0.02),
            TrainingPhase(traces="careless", steps=400, learning_rate=1e-3, matrix_learning_rate=None),
        ),
        seed=1,
    ),
)

# For tests and smoke runs: puzzles of 2 people only, models made in seconds, the student right now and then.
_KK_SMOKE = StarterRecipe(
    name="kk-smoke",
    people={2: 1.0},
    training_puzzles=250,
    tokens_per_step=1024,
    evaluation_puzzles=32,
    teacher=RoleRecipe(
        shape=ModelShape(hidden_size=64, num_layers=2, num_heads=2, feed_forward=128),
        phases=(TrainingPhase(traces="correct", steps=90, learning_rate=1e-2, matrix_learning_rate=0.02),),
        seed=0,
    ),
    student=RoleRecipe(
        shape=ModelShape(hidden_size=64, num_layers=2, num_heads=2, feed_forward=128),
        phases=(
            TrainingPhase(traces="correct", steps=70, learning_rate=1e-2, matrix_learning_rate=0.02),
            TrainingPhase(traces="careless", steps=15, learning_rate=1e-3, matrix_learning_rate=None),
        ),
        seed=1,
    ),
)

RECIPES: Mapping[str, StarterRecipe] = {recipe.name: recipe for recipe in (_KK, _KK_SMOKE)}


def find_recipe(name: str) -> StarterRecipe:
    """The recipe of this name.

    Raises:
        PlanError: there is none.
    """
    if name not in RECIPES:
        raise PlanError(f"no starter recipe {name!r}; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
