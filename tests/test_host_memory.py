"""Resident memory is the memory in use: a freed block does not stay, whatever holes the heap has."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from device_profiler import host

HOLES = """
import ctypes
from device_profiler import host

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
MB = 1_000_000

def block(size):
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    return address

host.return_freed_memory(False)  # as a process builds a network: blocks of the heap, some of them freed again
pairs = [(block(2 * MB), block(60_000)) for _ in range(20)]
for big, _ in pairs:
    libc.free(big)
host.return_freed_memory(True)
host.reset_resident_peak()
before = host.resident_mb()
for _ in range(3):  # one alive at a time
    blocks = [block(MB) for _ in range(4)]
    for one in blocks:
        libc.free(one)
print(host.resident_mb() - before, host.resident_peak_mb() - before)
host.return_freed_memory(False)
print(len(host._fillers))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_what_is_freed_leaves_no_trace_in_the_heaps_holes() -> None:
    told = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True).stdout.split()
    left, peak, fillers = (float(number) for number in told)
    assert left == pytest.approx(0, abs=0.5)
    assert peak == pytest.approx(4, abs=0.5)
    assert fillers == 0


def test_peak_memory_is_told_in_megabytes_on_both_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    for system, unit in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr("device_profiler.host.sys", SimpleNamespace(platform=system))
        told = SimpleNamespace(ru_maxrss=2_048_000_000 // unit)
        monkeypatch.setattr("device_profiler.host.resource.getrusage", lambda who, told=told: told)
        assert host.most_resident_mb() == 2048
