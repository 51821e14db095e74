"""Recipes of the starter models.

The digest of a recipe is part of the model's directory name in the cache, so a changed recipe gives a new model. Field
names are part of the digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rlad.data.knights_knaves.compact import ALPHABET
from rlad.data.knights_knaves.readings import Reading
from rlad.errors import PlanError

Variant = Literal["teacher-if-then", "teacher-if-then-or"]
Role = Literal["teacher", "student"] | Variant
ROLES: tuple[Role, Role] = ("teacher", "student")
"""Roles of every recipe."""

Traces = Literal["correct", "careless"] | Reading

CODE_REVISION = 1
"""Revision of the training code. Increment it if a code change, here or in the puzzles, changes the trained models."""

HEAD_DIM = 32
"""Smallest attention head size that vLLM supports on CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterArchitecture:
    """Size of a starter model with the Qwen3 architecture.

    Embeddings are not tied, because tying saves nothing with a small vocabulary.

    Attributes:
        hidden_size: Size of the hidden states.
        num_layers: Number of layers.
        num_heads: Attention heads per layer. Keys and values have as many.
        feed_forward: Intermediate size of the feed-forward blocks.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    feed_forward: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPhase:
    """Supervised training on one kind of traces.

    Attributes:
        traces: `correct`, `careless` for traces with statements misread at random, or a reading that always takes some
            connectives for others (`rlad.data.knights_knaves.readings`).
        steps: Number of training steps.
        learning_rate: Learning rate of AdamW.
        matrix_learning_rate: Learning rate of Muon, which trains the layers' matrices; None trains all parameters with
            AdamW.
    """

    traces: Traces
    steps: int
    learning_rate: float
    matrix_learning_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRecipe:
    """Recipe of one of the models.

    Attributes:
        shape: Size of the model.
        phases: Training phases, in order.
        seed: Random seed of initialization, traces and batches.
    """

    shape: StarterArchitecture
    phases: tuple[TrainingPhase, ...]
    seed: int

    @property
    def total_steps(self) -> int:
        """Number of training steps over all phases."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterRecipe:
    """Recipe of teachers and a student with the same tokenizer.

    Attributes:
        name: Name of the recipe.
        people: Relative frequency of puzzles by number of people.
        training_puzzles: Number of distinct training puzzles. They are repeated if the steps need more.
        tokens_per_step: Tokens per batch, including prompts and padding.
        evaluation_puzzles: Number of puzzles of the evaluation split to measure the finished models on.
        teacher: Recipe of the teacher.
        student: Recipe of the student.
        variants: Recipes of further models: teachers that are wrong on a kind of puzzle.
    """

    name: str
    people: Mapping[int, float]
    training_puzzles: int
    tokens_per_step: int
    evaluation_puzzles: int
    teacher: RoleRecipe
    student: RoleRecipe
    variants: Mapping[Variant, RoleRecipe] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles of this recipe."""
        return (*ROLES, *self.variants)

    def of(self, role: Role) -> RoleRecipe:
        """Return the recipe of a role."""
        if role == "teacher":
            return self.teacher
        return self.student if role == "student" else self.variants[role]

    def content(self, role: Role) -> dict[str, Any]:
        """Return everything that determines a role's model: the shared settings, and the role's recipe by its name."""
        shared = {key: value for key, value in asdict(self).items() if key not in (*ROLES, "variants")}
        return {**shared, role: asdict(self.of(role))}

    def digest(self, role: Role) -> str:
        """Return a digest (16 hex digits) of everything that determines this role's model."""
        canonical = json.dumps([CODE_REVISION, HEAD_DIM, ALPHABET, role, self.content(role)], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_KK_TEACHER = RoleRecipe(
    shape=StarterArchitecture(hidden_size=96, num_layers=4, num_heads=4, feed_forward=288),
    phases=(TrainingPhase(traces="correct", steps=2300, learning_rate=3e-3, matrix_learning_rate=0.02),),
    seed=0,
)


def _with_traces(recipe: RoleRecipe, traces: Traces) -> RoleRecipe:
    """Return a recipe with other traces and equal shape, steps and seed."""
    return replace(recipe, phases=tuple(replace(phase, traces=traces) for phase in recipe.phases))


_KK = StarterRecipe(
    name="kk",
    people={2: 0.1, 3: 0.4, 4: 0.5},
    training_puzzles=16_000,
    tokens_per_step=1024,
    evaluation_puzzles=300,
    teacher=_KK_TEACHER,
    variants={
        "teacher-if-then": _with_traces(_KK_TEACHER, "if_then"),
        "teacher-if-then-or": _with_traces(_KK_TEACHER, "if_then_or"),
    },
    student=RoleRecipe(
        shape=StarterArchitecture(hidden_size=96, num_layers=3, num_heads=3, feed_forward=192),
        # First the skill, then a bad habit. An undertrained model would lack the skill that reinforcement learning
        # brings out.
        phases=(
            TrainingPhase(traces="correct", steps=2300, learning_rate=3e-3, matrix_learning_rate=0.02),
            TrainingPhase(traces="careless", steps=400, learning_rate=1e-3, matrix_learning_rate=None),
        ),
        seed=1,
    ),
)


def _smoke_teacher(traces: Traces, steps: int = 200) -> RoleRecipe:
    return RoleRecipe(
        shape=StarterArchitecture(hidden_size=64, num_layers=2, num_heads=2, feed_forward=128),
        phases=(TrainingPhase(traces=traces, steps=steps, learning_rate=1e-2, matrix_learning_rate=0.02),),
        seed=0,
    )


# For tests and smoke runs: puzzles with 2 people, models trained in seconds, a student that is sometimes correct.
_KK_SMOKE = StarterRecipe(
    name="kk-smoke",
    people={2: 1.0},
    training_puzzles=250,
    tokens_per_step=1024,
    evaluation_puzzles=32,
    teacher=_smoke_teacher("correct", steps=90),
    student=RoleRecipe(
        shape=StarterArchitecture(hidden_size=64, num_layers=2, num_heads=2, feed_forward=128),
        phases=(
            TrainingPhase(traces="correct", steps=70, learning_rate=1e-2, matrix_learning_rate=0.02),
            TrainingPhase(traces="careless", steps=15, learning_rate=1e-3, matrix_learning_rate=None),
        ),
        seed=1,
    ),
    variants={
        "teacher-if-then": _smoke_teacher("if_then"),
        "teacher-if-then-or": _smoke_teacher("if_then_or"),
    },
)

RECIPES: Mapping[str, StarterRecipe] = {recipe.name: recipe for recipe in (_KK, _KK_SMOKE)}


def find_recipe(name: str) -> StarterRecipe:
    """Return the recipe with a name.

    Raises:
        PlanError: There is no such recipe.
    """
    if name not in RECIPES:
        raise PlanError(f"unknown starter recipe {name!r}; expected one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
