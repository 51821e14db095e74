"""TACO: the columns of APPS, and tags."""

from __future__ import annotations

from rlad.data.layouts.programming.apps import AppsLayout

TACO = AppsLayout(name="TACO", required=("raw_tags",))
