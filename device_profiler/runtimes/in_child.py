"""What runtimes that live in child processes share: one child a workload, asked to load and to run."""

from __future__ import annotations

import sys
from typing import Any

from device_profiler import host
from device_profiler.child import Child
from device_profiler.device import Device
from device_profiler.errors import TimedOut, WorkloadError
from device_profiler.lowering import Lowered
from device_profiler.runtimes.contract import Execution, Facts

CHILD_BASE_MB = 400.0  # interpreter, libraries and their code, beside what the workload takes


class ChildSession:
    """One workload in a process of its own, so that its crash or its memory is nobody else's."""

    def __init__(self, child: Child, facts: Facts) -> None:
        self.facts = facts
        self._child = child

    def run(self, repeats: int, timeout_s: float) -> list[Execution]:
        """``repeats`` executions, timed inside the child."""
        return [Execution(*times) for times in self._child.call("run", timeout_s, repeats=repeats)]

    def close(self) -> None:
        """End the process."""
        self._child.close()


class ChildRuntime:
    """A runtime whose sessions are child processes. Subclasses name the module and what it is told.

    Attributes:
        child_module: run with ``python -m``; it serves ``load`` (answering with the fields of ``Facts``) and ``run``.
    """

    source = "measured"
    toolkit = ""
    child_module = ""
    base_mb = CHILD_BASE_MB

    def __init__(self, device: Device) -> None:
        self.device = device
        self.tolerance = 1e-3 if device.precision == "fp32" else 3e-2
        self._sessions: list[ChildSession] = []

    def options(self) -> dict[str, Any]:
        """What the child is told beside the artifact."""
        return {"threads": self.device.threads}

    def describe(self) -> dict[str, str]:
        """Chip and system of this machine where the device says ``host``."""
        return {
            "chip": host.chip() if self.device.chip == "host" else self.device.chip,
            "os": host.system() if self.device.os == "host" else self.device.os,
        }

    def load(self, lowered: Lowered, timeout_s: float) -> ChildSession:
        """Start a child, load the workload there, measure its memory and check its output."""
        limit = self.device.memory_limit_mb
        child = Child(
            self.child_module,
            threads=self.device.threads,
            memory_limit_mb=self._limit(limit) if limit and sys.platform == "linux" else None,
        )
        try:
            answer = child.call("load", timeout_s, folder=str(lowered.folder), **self.options())
        except TimedOut:
            child.close()
            raise TimedOut(f"did not load and run once within {timeout_s:g} s; stopped") from None
        except WorkloadError:
            child.close()
            raise
        except BaseException:
            child.close()
            raise
        session = ChildSession(child, Facts(**answer))
        self._sessions.append(session)
        return session

    def _limit(self, limit_mb: float) -> float:
        return limit_mb + self.base_mb

    def capacity_mb(self) -> float:
        """Six tenths of what this machine could give now."""
        return 0.6 * host.available_mb()

    def close(self) -> None:
        """End every child."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()
