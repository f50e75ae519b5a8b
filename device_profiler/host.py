"""What can be read of the machine the profiler runs on: chip, system, memory, load."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

MB = 1e6
CPUINFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")


def chip() -> str:
    """The processor's name as the system gives it; on ARM, where cpuinfo names none, the board's."""
    if platform.system() == "Darwin":  # where platform.processor() is "arm" on all of Apple's
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        for line in CPUINFO.read_text().splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    try:
        return BOARD.read_text().strip("\0\n ")
    except OSError:
        return platform.processor() or platform.machine()


def gpu() -> str:
    """The name of the first NVIDIA GPU; without the driver's tools just that it is one."""
    names = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    return names[0].strip() if names else "NVIDIA GPU"


def system() -> str:
    """Operating system and architecture, e.g. ``Linux x86_64``; on a Mac with its version.

    A kernel's release is left out: a table would end with each of its updates.
    """
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.machine()}"


def load_average() -> float:
    """Processes that wanted to run in the last minute; 0.0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def available_mb() -> float:
    """Memory a new process could get now, in MB."""
    return _status_value(Path("/proc/meminfo"), "MemAvailable") or 4000.0


def resident_mb() -> float:
    """Resident memory of this process, in MB. Linux only; 0.0 elsewhere."""
    return _status_value(Path("/proc/self/status"), "VmRSS")


def resident_peak_mb() -> float:
    """Most resident memory since the last ``reset_resident_peak``, in MB. Linux only; 0.0 elsewhere."""
    return _status_value(Path("/proc/self/status"), "VmHWM")


def most_resident_mb() -> float:
    """Most resident memory of this process since it began, in MB; macOS counts bytes, Linux kibibytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak * 1024 / MB


def reset_resident_peak() -> bool:
    """Give freed memory back to the system, then start the high-water mark anew. False where that is impossible."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except (OSError, AttributeError):
        return False


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
BLOCK = 64 * 1024
_fillers: list[int] = []  # addresses of the blocks that fill the heap's holes


def return_freed_memory(at_once: bool) -> None:
    """Whether freed blocks of 64 kB and more go back to the system at once, or are kept for the next allocation.

    The first makes resident memory the memory in use, the second is fast. Without effect outside glibc.
    """
    threshold = BLOCK if at_once else 1 << 30
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, min(threshold, 32 << 20))
        libc.mallopt(M_TRIM_THRESHOLD, threshold)
        libc.malloc_trim(0)
        if at_once:
            _fill_holes(libc)
        else:
            _free_fillers(libc)
    except (OSError, AttributeError):
        pass


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def _fill_holes(libc: ctypes.CDLL) -> None:
    """Take up every hole of the heap that a block fits in, without touching its pages.

    A block is mapped by itself, and unmapped when it is freed, only where no hole can hold it; one from a hole stays
    resident after it is freed, and whole networks, which free much, would seem to need more than they do.
    """
    libc.mallinfo2.restype = _Mallinfo2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    mapped = libc.mallinfo2().hblks
    while (address := libc.malloc(BLOCK)) and libc.mallinfo2().hblks == mapped:
        _fillers.append(address)
    _free(libc, address)


def _free_fillers(libc: ctypes.CDLL) -> None:
    while _fillers:
        _free(libc, _fillers.pop())


def _free(libc: ctypes.CDLL, address: int | None) -> None:
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(address)


def _said(*command: str) -> str:
    """What a program prints; an empty string where it fails or is absent."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _status_value(path: Path, key: str) -> float:
    try:
        with path.open() as lines:
            for line in lines:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024 / MB
    except OSError:
        pass
    return 0.0
