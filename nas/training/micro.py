"""How many clips go through a network at once: as many as memory holds, fewer after it ran out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

SPARE = 0.9  # of the memory that is free: kernels' workspaces and fragments are not in any count


@dataclass
class AtOnce:
    """Clips of a step that go through the network at once; the others follow, and their gradients add up.

    Attributes:
        clips: how many. why: how that was found.
    """

    clips: int
    why: str

    def sentence(self, clips: int) -> str:
        """``8 clips a step, 3 at once (measured: ...)``."""
        often = "all at once" if self.clips >= clips else f"{self.clips} at once"
        return f"{clips} clip{'s' * (clips != 1)} a step, {often} ({self.why})"

    def halve(self) -> bool:
        """Half as many from now on; False where that is less than one."""
        if self.clips < 2:
            return False
        self.clips //= 2
        self.why = "memory ran out with more"
        return True


def fitting(clips: int, one: float, two: float, room: float, how: str) -> AtOnce:
    """As many of ``clips`` as fit.

    Args:
        one, two: bytes beyond those that are held, of a step with one clip at once and with two. room: bytes that are
            free. how: these were found.
    """
    each = max(two - one, 1.0)
    found = max(1, min(clips, 1 + int((SPARE * room - one) / each)))
    needed = one if found == 1 else one + (found - 1) * each
    tight = "" if needed <= SPARE * room else ", more than is free"
    return AtOnce(found, f"{how}: {_size(needed)} of {_size(room)} free{tight}")


def cuda_bytes(device: torch.device, run: Callable[[int], None]) -> tuple[float, float, float]:
    """Bytes of a step with one clip at once and with two, and those that are free, measured on a CUDA device.

    Args:
        run: makes forward and backward of so many clips.
    """
    found = []
    for clips in (1, 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            run(clips)
        except torch.OutOfMemoryError:
            found.append(float("inf") if clips > 1 else 0.0)  # with one there is nothing to choose
            continue
        found.append(float(torch.cuda.max_memory_allocated(device) - before))
    torch.cuda.empty_cache()
    return found[0], found[1], float(torch.cuda.mem_get_info(device)[0])


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
