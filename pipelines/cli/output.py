"""Removal of secrets from logs and tracebacks of the command line."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType

from rlad.credentials import redact


class _RedactedFormatter(logging.Formatter):
    """Formatter that removes secrets from what another one returns, tracebacks included."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return redact(self._formatter.format(record))


def redact_logs() -> None:
    """Remove secrets from everything that the handlers of the root logger write."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, _RedactedFormatter):
            handler.setFormatter(_RedactedFormatter(handler.formatter or logging.Formatter()))


def redact_tracebacks() -> None:
    """Remove secrets from the tracebacks of errors that nothing catches, in this and in other threads."""
    sys.excepthook = _print_redacted
    threading.excepthook = _print_of_thread


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _print_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        sys.stderr.write(f"Exception in thread {args.thread.name if args.thread else None}:\n")
        _print_redacted(args.exc_type, args.exc_value, args.exc_traceback)
