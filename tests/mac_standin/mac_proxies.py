"""What coremltools' extension module gives on a Mac, answered from a folder: outputs it was taught, a hidden truth."""

import json
import os
import random
import shutil
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(os.environ["MAC_STANDIN"])


def model_name(package: Path) -> str:
    digest = sha256()
    for file in sorted(package.rglob("*")):
        if file.suffix in (".bin", ".mlmodel"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


class _MLCPUComputeDeviceProxy: ...


class _MLGPUComputeDeviceProxy: ...


class _MLNeuralEngineComputeDeviceProxy: ...


class _MLComputePlanProxy: ...


class _MLModelAssetProxy: ...


class _MLModelProxy:
    def __init__(self, path, unit, function, hints, asset):
        self.how = json.loads((ROOT / "behaviour.json").read_text())
        if self.how["refuse"]:
            raise RuntimeError("Error compiling model: a tensor is too large for the Neural Engine.")
        if path.endswith(".mlpackage"):
            self.compiled = str(Path(tempfile.mkdtemp()) / "model.mlmodelc")
            shutil.copytree(path, self.compiled)
        else:
            self.compiled = path
            time.sleep(0.03)
        self.name, self.unit, self.took, self.rng = model_name(Path(path)), unit, None, random.Random(0)

    @staticmethod
    def maximum_supported_specification_version():
        return 9

    def get_compiled_model_path(self):
        return self.compiled

    def get_load_duration_in_nano_seconds(self):
        return 200_000_000

    def get_last_predict_duration_in_nano_seconds(self):
        return self.took

    def predict(self, data, state):
        if self.how["refuse_on"] == self.unit:
            raise RuntimeError("Error computing NN outputs.")
        if self.how["die"]:
            sys.stderr.write("BNNS: unexpected shape\n")
            os.abort()
        if any(array.dtype == np.float16 for array in data.values()):
            raise TypeError("Core ML's Python takes no float16 arrays")
        truth = 1 + int(self.name, 16) % 1000 / 100
        self.took = int(truth * 1e6 * (1 + 0.003 * self.rng.gauss(0, 1)))
        output = np.load(ROOT / f"{self.name}.npy")
        return {"y": output * 0 if self.how["lie"] or self.how["lie_on"] == self.unit else output}

    @staticmethod
    def get_compute_plan(path, unit):
        from coremltools.models import compute_device as cd

        engine = cd.MLNeuralEngineComputeDevice(_MLNeuralEngineComputeDeviceProxy())
        processor = cd.MLCPUComputeDevice(_MLCPUComputeDeviceProxy())
        usages = [engine, engine, engine, processor, None]
        if unit == "CPU_ONLY":
            usages = [processor, None]
        main = SimpleNamespace(block=SimpleNamespace(operations=usages))
        return SimpleNamespace(
            model_structure=SimpleNamespace(program=SimpleNamespace(functions={"main": main})),
            get_compute_device_usage_for_mlprogram_operation=lambda on: (
                on and SimpleNamespace(preferred_compute_device=on)
            ),
        )
