"""What every runtime is: the facts it tells, a session of loaded workloads, and how one is opened by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from device_profiler.runtimes import REGISTRY

if TYPE_CHECKING:
    from device_profiler.device import Device
    from device_profiler.lowering import Lowered


@dataclass(frozen=True)
class Facts:
    """What loading a workload told, before any timing. None is unknown, never zero. MB = 10^6 bytes, ms.

    Args:
        weights_mb: bytes of the parameters in the lowered file.
        activation_peak_mb: most memory held at once for input, output and intermediates together.
        system_peak_mb: the same as the whole system saw it, where a runtime can tell.
        max_error: largest difference from the torch module's output, relative to that output's largest value. Of Core
            ML it is from the evaluator's output in float16, where there is one (``Lowered.device_error_of``).
        output_error: compute unit (``cpu``, ``gpu``, ``ane``) -> the same when it runs there, of each unit that the
            device may use; infinite where it is not finite.
        numeric_error: ``fp32`` and ``fp16`` of the lowered file by the evaluator, against the torch module.
        placement_cpu, placement_gpu, placement_ane: share of the operations placed on each unit, 0..1.
        notes: what the row's reason should say beside, for example why a figure is unknown.
    """

    load_cold_ms: float | None = None
    load_warm_ms: float | None = None
    weights_mb: float | None = None
    activation_peak_mb: float | None = None
    system_peak_mb: float | None = None
    static_peak_mb: float | None = None
    placement_cpu: float | None = None
    placement_gpu: float | None = None
    placement_ane: float | None = None
    thermal: str | None = None
    max_error: float | None = None
    output_error: Mapping[str, float] = field(default_factory=dict)
    numeric_error: Mapping[str, float] = field(default_factory=dict)
    estimator: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Execution:
    """One execution: its latency and, where the runtime can tell, what of it was waited for a processor, in ms.

    With several threads it is the wait of whichever waited longest, since the others wait for it; see ``waits.Watch``.
    """

    ms: float
    waited_ms: float | None = None

    @property
    def interrupted(self) -> bool:
        """Whether more than 2% of the latency (and 20 us) was spent not running."""
        return self.waited_ms is not None and self.waited_ms > 0.02 * self.ms + 0.02


class Session(Protocol):
    """One loaded workload. Made by ``Runtime.load``; closed by whoever asked for it."""

    facts: Facts

    def run(self, repeats: int, timeout_s: float) -> list[Execution]:
        """Execute ``repeats`` times back to back and time each.

        Raises:
            WorkloadError: the workload failed, ran out of memory or of time.
            SessionLost: what it ran on went away for another reason; load it again and go on.
        """
        ...

    def close(self) -> None:
        """Free everything; harmless when called twice or after a failure."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """Loads lowered workloads on one device and runs them. It times nothing by itself: ``measure`` owns the loop.

    A runtime is constructed with its ``Device`` and does nothing costly before ``load``. ``device_profiler.testing``
    has the contract test; inherit it for a runtime of your own.

    Attributes:
        source: ``measured``, or ``estimated`` for a runtime that computes its answer (it is then asked once).
        toolkit: which lowering it eats: a key of ``device_profiler.lowering.TOOLKITS``.
        tolerance: largest ``Facts.max_error`` that still counts as the same function.
    """

    source: str
    toolkit: str
    tolerance: float

    def __init__(self, device: Device) -> None: ...

    def check(self) -> None:
        """Raise ``ProfileError`` with the remedy if this machine cannot run it: a missing package, tool or phone."""
        ...

    def describe(self) -> dict[str, str]:
        """``runtime_version``, ``toolkit_version``, and ``chip`` and ``os`` where the device says ``host``.

        Where there is one also ``provider``, the ``model`` of a phone, and ``notes`` for the table's header.
        """
        ...

    def load(self, lowered: Lowered, timeout_s: float) -> Session:
        """Load one workload, measure its memory, and check its outputs against the torch module's.

        Raises:
            WorkloadError: it cannot be loaded or run; the status and reason become its row.
        """
        ...

    def capacity_mb(self) -> float:
        """Memory that workloads loaded at the same time may take together, in MB."""
        ...

    def close(self) -> None:
        """Stop every process and connection of this runtime."""
        ...


def load_runtime_class(device: Device) -> type[Runtime]:
    """The class of the runtime that the device names; imports its file, which imports nothing heavy.

    Raises:
        ProfileError: if there is none of that name, or it cannot be imported.
    """
    return REGISTRY.get(device.runtime)


def open_runtime(device: Device) -> Runtime:
    """The runtime that the device names, constructed for it; costs nothing yet."""
    return load_runtime_class(device)(device)
