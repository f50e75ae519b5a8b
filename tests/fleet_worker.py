"""A fleet's worker with a scripted runtime: its latencies are known, each execution takes a while, one workload dies.

python fleet_worker.py ADDRESS DEVICE.yaml CACHE
"""

from __future__ import annotations

import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path

from device_profiler import fleet_network
from device_profiler.device import Device
from device_profiler.errors import OutOfMemory, ProfileError
from device_profiler.fleet import serve
from device_profiler.lowering import Lowered
from device_profiler.runtimes import RUNTIMES
from device_profiler.runtimes.contract import Execution, Facts

RUNTIME = "fleet_worker:Scripted"


def truth_ms(key: str) -> float:
    """Between 1 and 11 ms, from the workload's key."""
    return 1 + int(sha256(key.encode()).hexdigest()[:8], 16) % 1000 / 100


class Session:
    def __init__(self, device: Device, key: str, count: int) -> None:
        self.facts = Facts(weights_mb=1.0, activation_peak_mb=2.0, max_error=0.0)
        self.device, self.key, self.count = device, key, count

    def run(self, repeats: int, timeout_s: float) -> list[Execution]:
        time.sleep(0.02)
        if self.device.notes in self.key and self.device.notes:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Execution(truth_ms(self.key) * (1 + 0.001 * (n % 2))) for n in range(repeats)]

    def close(self) -> None: ...


class Scripted:
    """Counts as measured; ``device.notes`` names the workload that takes its worker's life, or says ``unplugged``."""

    source, toolkit, tolerance = "measured", "counts", 1e-3

    def __init__(self, device: Device) -> None:
        self.device = device

    def check(self) -> None: ...

    def describe(self) -> dict[str, str]:
        return {"chip": self.device.chip, "runtime_version": "1", "toolkit_version": "1"}

    def capacity_mb(self) -> float:
        return 1e9

    def load(self, lowered: Lowered, timeout_s: float) -> Session:
        if self.device.notes == "unplugged":
            raise ProfileError("phone: no iPhone is attached; plug one in.")
        if lowered.subject.workload.block == "SelfAttention3D":
            raise OutOfMemory("does not fit")
        return Session(self.device, lowered.subject.key, 0)

    def close(self) -> None: ...


if __name__ == "__main__":
    RUNTIMES["scripted"] = RUNTIME
    fleet_network.CONNECT_S = 600.0  # no limit for a busy machine
    serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
