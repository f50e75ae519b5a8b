"""The contract of a runtime as tests: inherit ``RuntimeContract``, say which device, and pytest does the rest.

from device_profiler.testing import RuntimeContract

class TestMyBoard(RuntimeContract):
    device = Device.load("my_board.yaml")
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from device_profiler.device import Device
from device_profiler.errors import WorkloadError
from device_profiler.lowering import Lowered, default_lowerings, lower
from device_profiler.measure import measure
from device_profiler.runtimes.contract import Runtime, open_runtime
from device_profiler.samples import Job, Limits, RunLog
from device_profiler.subject import Subject, reference_subject

QUICK = Limits(warmup=1, min_rounds=2, max_rounds=2, visit_ms=1.0, max_repeats=2, timeout_s=600.0, seconds=5.0)


class RuntimeContract:
    """What every runtime promises. Subclasses set ``device``; ``timeout_s`` where theirs is slow to load."""

    device: ClassVar[Device]
    timeout_s: ClassVar[float] = 600.0

    @pytest.fixture()
    def runtime(self) -> Iterator[Runtime]:
        """The runtime, skipped where this machine cannot run it."""
        runtime = open_runtime(self.device)
        try:
            runtime.check()
        except ValueError as error:
            pytest.skip(str(error))
        yield runtime
        runtime.close()

    @pytest.fixture()
    def artifact(self, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
        """The reference workload, lowered for the runtime; once, as artifacts are cached."""
        subject = reference_subject(self.device.precision)
        toolkit = open_runtime(self.device).toolkit
        return self.lowered(subject, toolkit, tmp_path_factory.getbasetemp() / "lowered")

    def lowered(self, subject: Subject, toolkit: str, cache: Path) -> Lowered:
        """Lower a subject in this process."""
        return lower(subject, toolkit, default_lowerings(toolkit, subject.workload)[0], cache)

    def test_says_what_it_is(self, runtime: Runtime) -> None:
        about = runtime.describe()
        assert runtime.source in ("measured", "estimated")
        assert about["runtime_version"] and about["toolkit_version"]
        assert runtime.tolerance > 0 and runtime.capacity_mb() > 0

    def test_one_load_tells_facts_checks_outputs_and_times_as_often_as_asked(
        self, runtime: Runtime, artifact: Lowered
    ) -> None:
        session = runtime.load(artifact, self.timeout_s)
        times = session.run(3, self.timeout_s)
        facts = session.facts
        session.close()
        assert all(run.ms > 0 and math.isfinite(run.ms) for run in times)
        assert len(times) == (3 if runtime.source == "measured" else 1)
        numbers = (
            facts.load_cold_ms,
            facts.load_warm_ms,
            facts.weights_mb,
            facts.activation_peak_mb,
            facts.system_peak_mb,
            facts.static_peak_mb,
        )
        assert all(value is None or value >= 0 for value in numbers)
        weights = facts.weights_mb
        assert weights is not None and weights == pytest.approx(artifact.stats["weights_mb"])
        if runtime.source == "measured":
            error = facts.max_error
            assert error is None or error <= runtime.tolerance, "outputs are compared with the torch module's"

    def test_closing_twice_is_harmless(self, runtime: Runtime, artifact: Lowered) -> None:
        session = runtime.load(artifact, self.timeout_s)
        session.close()
        session.close()
        runtime.close()

    def test_a_broken_artifact_is_a_workload_error(self, runtime: Runtime, artifact: Lowered, tmp_path: Path) -> None:
        broken = replace(artifact, folder=tmp_path / "absent", stats={})
        with pytest.raises((WorkloadError, KeyError)):
            runtime.load(broken, self.timeout_s)

    def test_the_loop_makes_a_row_of_it(self, runtime: Runtime, artifact: Lowered) -> None:
        job = Job(artifact.subject.workload, artifact.lowering, (artifact,))
        limits = replace(QUICK, timeout_s=self.timeout_s)
        (record,) = measure([job], runtime, limits, np.random.default_rng(0), log=RunLog())
        assert record.status in ("ok", "unstable"), record.reason
        assert record.key == artifact.subject.key and record.source == runtime.source
        assert record.latency_ms_median and record.latency_ms_median > 0
