"""The one base error of the room, and the failures that become rows."""

from __future__ import annotations

from collections.abc import Mapping


class ProfileError(ValueError):
    """Wrong input to the profiler: an unknown device, a misspelt key, a missing tool. One line, with the remedy."""


class WorkloadError(Exception):
    """A workload gave no number. ``status`` and the message become its row; the run goes on."""

    status = "failed"


class OutOfMemory(WorkloadError):
    """The workload does not fit: refused before it was sent, or stopped for memory while it ran."""

    status = "oom"


class Unsupported(WorkloadError):
    """The toolkit or the runtime has no implementation for something in the workload."""

    status = "unsupported"


class TimedOut(WorkloadError):
    """No answer within the limit."""

    status = "timeout"


class WrongAnswer(WorkloadError):
    """It runs, and what it answers is not what the workload computes. No latency of it is kept.

    Attributes:
        found: the columns of the row that say how far off which compute unit was.
    """

    status = "wrong"

    def __init__(self, message: str, found: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.found = dict(found or {})


class SessionLost(Exception):
    """The process or device behind a session went away for a reason that is not this workload's: measure it again."""


WORKLOAD_ERRORS: dict[str, type[WorkloadError]] = {
    "failed": WorkloadError,
    "oom": OutOfMemory,
    "unsupported": Unsupported,
    "timeout": TimedOut,
    "wrong": WrongAnswer,
}


def one_line(text: object, limit: int = 300) -> str:
    """The text on one line, shortened to ``limit`` characters: what fits in a table's ``reason``."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
