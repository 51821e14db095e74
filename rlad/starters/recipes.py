"""Recipes of the starter models.

The digest of a recipe is part of the model's directory name in the cache, so a changed recipe gives a new model. Field
names are part of the digest.
"""

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
        traces: `correct`, or `careless` for traces with misread statements.
        steps: Number of training steps.
        learning_rate: Learning rate of AdamW.
        matrix_learning_rate: Learning rate of Muon, which trains the layers' matrices; None trains all parameters with
            AdamW.
    """

    traces: Literal["correct", "careless"]
    steps: int
    learning_rate: float
    matrix_learning_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRecipe:
    """Recipe of one of the two models.

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
    """Recipe of a teacher and a student with the same tokenizer.

    Attributes:
        name: Name of the recipe.
        people: Relative frequency of puzzles by number of people.
        training_puzzles: Number of distinct training puzzles. They are repeated if the steps need more.
        tokens_per_step: Tokens per batch, including prompts and padding.
        evaluation_puzzles: Number of puzzles of the evaluation split to measure the finished models on.
        teacher: Recipe of the teacher.
        student: Recipe of the student.
    """

    name: str
    people: Mapping[int, float]
    training_puzzles: int
    tokens_per_step: int
    evaluation_puzzles: int
    teacher: RoleRecipe
    student: RoleRecipe

    def of(self, role: Role) -> RoleRecipe:
        """Return the recipe of a role."""
        return self.teacher if role == "teacher" else self.student

    def digest(self, role: Role) -> str:
        """Return a digest (16 hex digits) of everything that determines this role's model."""
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
        shape=StarterArchitecture(hidden_size=96, num_layers=4, num_heads=4, feed_forward=288),
        phases=(TrainingPhase(traces="correct", steps=2300, learning_rate=3e-3, matrix_learning_rate=0.02),),
        seed=0,
    ),
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

# For tests and smoke runs: puzzles with 2 people, models trained in seconds, a student that is sometimes correct.
_KK_SMOKE = StarterRecipe(
    name="kk-smoke",
    people={2: 1.0},
    training_puzzles=250,
    tokens_per_step=1024,
    evaluation_puzzles=32,
    teacher=RoleRecipe(
        shape=StarterArchitecture(hidden_size=64, num_layers=2, num_heads=2, feed_forward=128),
        phases=(TrainingPhase(traces="correct", steps=90, learning_rate=1e-2, matrix_learning_rate=0.02),),
        seed=0,
    ),
    student=RoleRecipe(
        shape=StarterArchitecture(hidden_size=64, num_layers=2, num_heads=2, feed_forward=128),
        phases=(
            TrainingPhase(traces="correct", steps=70, learning_rate=1e-2, matrix_learning_rate=0.02),
            TrainingPhase(traces="careless", steps=15, learning_rate=1e-3, matrix_learning_rate=None),
        ),
        seed=1,
    ),
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
