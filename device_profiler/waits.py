"""How long this process was ready to run and did not: what other work on the machine takes from a timed execution.

With one thread the wall less the process's time says it. With more, the process's time adds its threads up, and a
barrier waits for whichever was put off: there the kernel is asked how long each thread stood in the queue.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

SWITCH_MS = 0.1  # an assumption, where the kernel only counts: what one involuntary switch takes at least
TASKS = Path("/proc/self/task")


class Watch:
    """Times executions and says what of each the process waited for a processor.

    As a context it keeps the kernel's files of the threads open, as opening them takes longer than reading.

    Args:
        threads: that the runtime computes with. More than the processors that this process may use queue behind each
            other, whoever else is there: nothing can be said then.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._files: dict[str, int] = {}
        self._knows = threads <= processors()

    def __enter__(self) -> Watch:
        if self._knows and self.threads > 1:
            self._open()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def start(self) -> None:
        """An execution begins."""
        self._queued = self._delays()
        self._switches = involuntary_switches()
        self._busy = time.process_time()
        self._began = time.perf_counter()

    def stop(self) -> tuple[float, float | None]:
        """The execution's latency and what of it was waited for a processor (None: unknown), in ms."""
        ms = (time.perf_counter() - self._began) * 1e3
        busy = (time.process_time() - self._busy) * 1e3
        if not self._knows:
            return ms, None
        if self.threads == 1:
            return ms, max(0.0, ms - busy)
        waited = self._waited()
        return ms, None if waited is None else min(ms, waited)  # the counts were read a little before and after

    def _waited(self) -> float | None:
        now = self._delays()
        if now:  # a thread that is new began to wait when it began to be
            return max(delay - self._queued.get(task, 0) for task, delay in now.items()) / 1e6
        return SWITCH_MS * (involuntary_switches() - self._switches)

    def _open(self) -> None:
        try:
            for task in TASKS.iterdir():
                self._files[task.name] = os.open(task / "schedstat", os.O_RDONLY)
        except OSError:  # a kernel that keeps no such counts, or no Linux
            self._files.clear()

    def _delays(self) -> dict[str, int]:
        """Thread -> nanoseconds that it has stood in a processor's queue, ready to run."""
        found = {}
        for task, file in self._files.items():
            try:
                found[task] = int(os.pread(file, 64, 0).split()[1])
            except (OSError, IndexError, ValueError):  # a thread that has ended
                continue
        return found


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def involuntary_switches() -> int:
    """How often the system took a processor from a thread of this process that still wanted it."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
