"""What profiling costs beside the timing itself: lowering, processes and loading, against the bare library calls.

The bare calls do once for each workload what cannot be avoided: build the module, run it for the expected output,
export it with torch.onnx, and open an ONNX Runtime session on it in a process that has both loaded. The profiler does
that and starts a child for each workload, loads it twice, measures its memory and checks its output.

    python benchmarks/profile_cost.py [--space tiny]

Exit code 1 if the profiler takes more than 1.2 times the bare calls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from device_profiler.device import Device
from device_profiler.measure import Progress
from device_profiler.profile import profile
from device_profiler.samples import Limits
from search_spaces.space import Space

TARGET = 1.2
BARE = """
import sys, time
import numpy, onnxruntime, torch
from device_profiler.lowering.onnx import OPSETS, quiet
from device_profiler.subject import Subject, reference_subject
from search_spaces.space import Space
torch.set_num_threads(1)
space, folder = sys.argv[1], sys.argv[2]
loaded = Space.load(space)
subjects = [Subject(w, space) for w in (*loaded.workloads("fp32"), *loaded.ends("fp32"))] + [reference_subject("fp32")]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for index, subject in enumerate(subjects):
    module, inputs, names = subject.build()
    with torch.no_grad(), quiet():
        module(*inputs)
        path = f"{folder}/{index}.onnx"
        torch.onnx.export(module, inputs, path, input_names=list(names), output_names=["y"], opset_version=20,
                          dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {n: x.numpy() for n, x in zip(names, inputs) if n in {i.name for i in session.get_inputs()}})
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny")
    args = parser.parse_args()
    device = Device.load("host_cpu")
    space = Space.load(args.space)
    workloads = len(space.workloads(device.precision)) + len(space.ends(device.precision))
    marks: dict[str, float] = {}

    def watch(event: Progress) -> None:
        marks.setdefault(event.stage, time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", BARE, args.space, folder], check=True, capture_output=True
        )
        bare = time.perf_counter() - start

        def overhead(run: str) -> float:
            marks.clear()
            begin = time.perf_counter()
            limits = Limits(min_rounds=1, max_rounds=1)
            profile(
                args.space, device, Path(folder) / run, cache_dir=Path(folder) / "cache", limits=limits, progress=watch
            )
            return marks["time"] - begin  # "time" is first told when the first round is over

        cold, cached = overhead("first"), overhead("second")
    print(f"{'':32}{'seconds':>9}{'a workload':>12}")
    for name, seconds in (("bare library calls", bare), ("profiler", cold), ("profiler, lowered already", cached)):
        print(f"{name:32}{seconds:9.1f}{seconds / workloads:12.2f}")
    ratio = cold / bare
    print(
        json.dumps(
            {
                "overhead_ratio": round(ratio, 3),
                "bare_s_per_workload": round(bare / workloads, 3),
                "profiler_s_per_workload": round(cold / workloads, 3),
                "cached_s_per_workload": round(cached / workloads, 3),
                "workloads": workloads,
            }
        )
    )
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
