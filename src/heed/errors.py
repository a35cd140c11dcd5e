"""Errors that are the user's to mend, told in one line."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """What the command prints in one line, without traceback, with exit code 2.

    It names the place (file and line), what was found, what was expected, and what to do.
    """

    def __init__(
        self,
        found: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        place = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        parts = [found, f"expected {expected}" if expected else None, fix]
        super().__init__(" ".join((place + "; ".join(p for p in parts if p)).split("\n")))


class NonFiniteLoss(UserError):
    """A loss or gradient became NaN or infinite; the last good checkpoint is kept."""


class Interrupted(Exception):
    """The process was asked to stop (SIGINT, SIGTERM); its state is on disk and the same command goes on from it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


def require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raise `UserError` naming a configuration field unless its value is in range."""
    if not condition:
        raise UserError(f"{name} is {found!r}", expected=expected)
