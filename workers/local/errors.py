"""Errors of the local stack."""

from __future__ import annotations


class StackError(Exception):
    """Raised when the local stack cannot do what was asked; the text says why and what to do."""


class StartFailed(StackError):  # noqa: N818 - named by what happened
    """Raised when a process did not become ready; carries the end of its log."""


class AlreadyRunning(StackError):  # noqa: N818 - named by what happened
    """Raised when another supervisor holds the same home folder."""
