"""Core ML on an attached iPhone: packages of the Core ML lowering, timed on the phone by coremltools' runner app.

A device with ``local: true`` is the Mac itself; ``mac`` has what is different then.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_profiler.device import Device
from device_profiler.errors import OutOfMemory, ProfileError, SessionLost, WorkloadError, one_line
from device_profiler.lowering import Lowered
from device_profiler.runtimes.contract import Execution, Facts, Session
from device_profiler.runtimes.mac import MacRuntime
from device_profiler.runtimes.phone import Phone
from device_profiler.runtimes.phone_memory import INSTALL, Growth, MemoryWatch
from device_profiler.runtimes.units import UNITS, evaluated, output_errors
from device_profiler.subject import package_version

COMPILE_TIMEOUT_S = 600.0
RUNNER = "ModelRunner"  # coremltools' app
MEASURED = (
    "activation_peak_mb is how much the app's physical footprint grew from loaded and idle to looping, system_peak_mb "
    "that of all processes; sampled twice a second, so both are lower bounds."
)


class CoreMLSession:
    """One model loaded on the phone. An execution is a round trip of files; the phone's clock times the prediction."""

    def __init__(
        self, phone: Phone, model: Path, unit: str, lowered: Lowered, timeout_s: float, memory: MemoryWatch | None
    ) -> None:
        self._phone, self._unit, self._timeout_s = phone, unit, timeout_s
        self._model = model
        self._inputs = _inputs(lowered)
        self._identity = ""
        self._epoch = 0
        try:
            cold = self._load()
            self._unload()
            warm = self._load()
            self.facts = self._on_each_unit(self._facts(cold, warm, lowered, memory), lowered)
        except BaseException:
            self.close()  # nobody else has this session, and the model would stay on the phone
            raise

    def _facts(self, cold: float, warm: float, lowered: Lowered, memory: MemoryWatch | None) -> Facts:
        grown = memory.growth(lambda: self._predict(self._timeout_s)) if memory is not None else Growth()
        output, _ = self._predict(self._timeout_s)
        numeric, notes = evaluated(lowered.stats.get("numeric_error"))
        return Facts(
            load_cold_ms=cold,
            load_warm_ms=warm,
            weights_mb=lowered.stats["weights_mb"],
            activation_peak_mb=grown.app_mb,
            system_peak_mb=grown.system_mb,
            static_peak_mb=lowered.stats["static_peak_mb"],
            notes="; ".join(part for part in (grown.reason, *notes) if part),
            max_error=lowered.device_error_of(output),
            numeric_error=numeric,
            **self._placement(),  # type: ignore[arg-type]  # three shares by name
        )

    def _on_each_unit(self, facts: Facts, lowered: Lowered) -> Facts:
        """The facts with ``output_error``: each unit that the device may use is loaded for one prediction."""
        setting = self._unit

        def error_under(other: str) -> float:
            self.close()  # two models at once may be more than the phone holds
            self._unit = other
            try:
                self._load()
                return lowered.device_error_of(self._predict(self._timeout_s)[0])
            finally:
                self.close()
                self._unit = setting

        assert facts.max_error is not None
        errors, notes = output_errors(setting, facts.max_error, error_under)
        if not self._identity:
            self._load()
        told = "; ".join(part for part in (facts.notes, *notes) if part)
        return replace(facts, output_error=errors, notes=told)

    def _call(self, method: str, timeout_s: float, resource: Path | None = None, **more: Any) -> Any:
        params = {"modelID": self._identity, "computeUnits": self._unit, **more}
        return self._phone.call(f"MLModelService.{method}", params, timeout_s, resource)

    def _load(self) -> float:
        self._phone.start(self._timeout_s)
        self._identity, self._epoch = str(uuid.uuid4()), self._phone.epoch
        result, _ = self._call("Load", self._timeout_s, self._model, name=self._model.name, functionName=None)
        return float(result["duration"]) / 1e6

    def _unload(self) -> None:
        self._call("Unload", 60.0)
        self._identity = ""

    def _predict(self, timeout_s: float) -> tuple[Any, float]:
        from coremltools.models.ml_program.experimental import remote_device as rd

        descriptors, data = rd._RemoteMLModelService._prepare_data_for_transfer(self._inputs)
        try:
            result, resource = self._call("Prediction", timeout_s, data, inputs=descriptors)
        finally:
            data.unlink(missing_ok=True)
        if resource is None or not result.get("outputs"):
            raise WorkloadError("the prediction came back without outputs")
        with resource.open("rb") as file:
            output = rd._TensorDescriptor.from_dict(result["outputs"]["y"]).to_array(file)
        resource.unlink()
        return output, float(result["duration"]) / 1e6

    def _placement(self) -> dict[str, float | None]:
        """Share of the operations that Core ML prefers to run on each unit."""
        names = {"cpu": "placement_cpu", "gpu": "placement_gpu", "neuralEngine": "placement_ane"}
        try:
            result, _ = self._call("ComputePlan", self._timeout_s)
        except WorkloadError:
            return {}
        preferred = Counter(
            next((unit for unit in names if unit in info["deviceUsage"]["preferred"]), "cpu")
            for info in result.get("infos", ())
            if info.get("deviceUsage")
        )
        total = sum(preferred.values())
        return {name: preferred[unit] / total for unit, name in names.items()} if total else {}

    def run(self, repeats: int, timeout_s: float) -> list[Execution]:
        """``repeats`` predictions, each timed on the phone without the transfer."""
        if self._epoch != self._phone.epoch:
            raise SessionLost("the app was restarted since the model was loaded")
        return [Execution(self._predict(timeout_s)[1]) for _ in range(repeats)]

    def close(self) -> None:
        """Unload the model, if the app that holds it still runs."""
        if self._identity and self._epoch == self._phone.epoch:
            try:
                self._unload()
            except (WorkloadError, SessionLost):
                pass
        self._identity = ""


class CoreMLRuntime:
    """An attached phone, or this Mac itself.

    For a phone, compilation is done on the Mac by ``xcrun coremlcompiler``, everything else on the phone. coremltools
    measures no memory: ``phone_memory`` does where its program is installed, and else those columns stay empty.
    ``static_peak_mb`` is the plan of the converted program in any case.
    """

    source = "measured"
    toolkit = "coreml"
    tolerance = 5e-2

    def __init__(self, device: Device) -> None:
        if device.compute_unit not in UNITS:
            raise ProfileError(
                f"{device.name}: runtime coreml has no compute unit {device.compute_unit}; "
                f"it is one of {', '.join(UNITS)}."
            )
        self.device = device
        self.phone = Phone(device)
        self._mac = MacRuntime(device) if device.local else None
        self._compiled: Path | None = None
        self._memory: MemoryWatch | None = None

    def check(self) -> None:
        """The tools must be there and one phone ready; see ``Phone.find``. Of a Mac itself see ``MacRuntime``."""
        if self._mac is not None:
            self._mac.check()
        else:
            self.phone.find()
            self.phone.check_app()

    def describe(self) -> dict[str, str]:
        """What the phone, or the Mac, says of itself."""
        if self._mac is not None:
            return self._mac.describe()
        found = self.phone.find()
        model, name = self.phone.model(found)
        return {
            "chip": name or model if self.device.chip == "host" else self.device.chip,
            "model": model,
            "os": f"iOS {found.os_version} ({found.os_build_number})",
            "runtime_version": f"Core ML of iOS {found.os_version} ({found.os_build_number})",
            "toolkit_version": f"coremltools {package_version('coremltools')}, torch {package_version('torch')}",
            "notes": MEASURED if MemoryWatch.available() else f"Memory columns are empty: {INSTALL}.",
        }

    def load(self, lowered: Lowered, timeout_s: float) -> Session:
        """Compile, load twice (cold and warm), check one prediction, read the compute plan."""
        if self._mac is not None:
            return self._mac.load(lowered, timeout_s)
        model = self._compile(lowered)
        return CoreMLSession(self.phone, model, self.device.compute_unit, lowered, timeout_s, self._watch())

    def _watch(self) -> MemoryWatch | None:
        """What sees the phone's memory, where its program is installed."""
        if self._memory is None and MemoryWatch.available():
            app = Path(self.phone.settings.app_path).stem or RUNNER
            self._memory = MemoryWatch(str(self.phone.find().udid), app)
        return self._memory

    def _compile(self, lowered: Lowered) -> Path:
        if self._compiled is None:
            self._compiled = Path(tempfile.mkdtemp(prefix="mlmodelc-"))
        folder = self._compiled / lowered.folder.name
        known = list(folder.glob("*.mlmodelc"))
        if known:
            return known[0]
        folder.mkdir(parents=True, exist_ok=True)
        command = ["xcrun", "coremlcompiler", "compile", str(lowered.file), str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorkloadError(f"coremlcompiler: {one_line(error)}") from None
        made = list(folder.glob("*.mlmodelc"))
        if done.returncode or not made:
            shutil.rmtree(folder, ignore_errors=True)
            said = one_line(done.stderr or done.stdout or f"exit code {done.returncode}", 200)
            raise (OutOfMemory if done.returncode == -9 else WorkloadError)(f"coremlcompiler: {said}")
        return made[0]

    def capacity_mb(self) -> float:
        """What the device's YAML allows."""
        return self.device.memory_limit_mb or 1000.0

    def close(self) -> None:
        """Stop the app and remove compiled models; the runtime can be used again."""
        if self._mac is not None:
            self._mac.close()
        if self._memory is not None:
            self._memory.close()
        self.phone.close()
        if self._compiled is not None:
            shutil.rmtree(self._compiled, ignore_errors=True)
            self._compiled = None


def _inputs(lowered: Lowered) -> dict[str, Any]:
    import numpy as np

    wide = np.float16 if lowered.subject.workload.precision == "fp16" else np.float32
    return {
        spec.name: np.ascontiguousarray(array.astype(wide if spec.dtype.startswith("float") else np.int32))
        for spec, array in zip(lowered.inputs, lowered.arrays(), strict=True)
    }
