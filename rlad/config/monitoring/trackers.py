"""Configuration of the experiment trackers of a run."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rlad.config.base import ConfigModel

_PROJECT = "Name of the project; created if it does not exist."


class TensorBoardTracker(ConfigModel):
    """TensorBoard event files in `tensorboard/` of the run directory."""

    name: Literal["tensorboard"] = Field("tensorboard", description="Name of the tracker.")


class WandbTracker(ConfigModel):
    """Weights & Biases. The key comes from `WANDB_API_KEY` or `wandb login` on the driver's machine."""

    name: Literal["wandb"] = Field(description="Name of the tracker.")
    project: str = Field("rlad", description=_PROJECT)
    entity: str | None = Field(None, description="User or team; null means the account's default.")
    mode: Literal["online", "offline"] = Field(
        "online", description="`offline` writes to the run directory only; `wandb sync` uploads it later."
    )


class MlflowTracker(ConfigModel):
    """MLflow."""

    name: Literal["mlflow"] = Field(description="Name of the tracker.")
    tracking_uri: str | None = Field(
        None, description="URI of the tracking server; null writes a file store to the run directory."
    )
    experiment: str = Field("rlad", description="Name of the experiment; created if it does not exist.")


class TrackioTracker(ConfigModel):
    """Trackio, a local-first tracker."""

    name: Literal["trackio"] = Field(description="Name of the tracker.")
    project: str = Field("rlad", description=_PROJECT)
    space_id: str | None = Field(
        None, description="Hugging Face Space `OWNER/NAME` to send to; null writes to the run directory."
    )


TrackerConfig = Annotated[
    TensorBoardTracker | WandbTracker | MlflowTracker | TrackioTracker, Field(discriminator="name")
]


def _expand_name(value: Any) -> Any:
    """Expand the name of a tracker to the section that it abbreviates."""
    return {"name": value} if isinstance(value, str) else value


def _require_different(trackers: list[TrackerConfig]) -> list[TrackerConfig]:
    for name, number in Counter(tracker.name for tracker in trackers).items():
        if number > 1:
            raise ValueError(f"tracking must list each tracker once; got {name} {number} times")
    return trackers


TrackingConfig = Annotated[
    list[Annotated[TrackerConfig, BeforeValidator(_expand_name)]], AfterValidator(_require_different)
]
"""Trackers of a run: names, or sections with settings."""
