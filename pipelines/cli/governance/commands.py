"""The command `rlad registry` with all its subcommands. Importing a module registers those in it."""

from __future__ import annotations

from pipelines.cli.governance import approvals, exports, following, notes, serving, webhooks
from pipelines.cli.registry import app

__all__ = ["app", "approvals", "exports", "following", "notes", "serving", "webhooks"]
