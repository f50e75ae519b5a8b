"""Admission: a workload that cannot fit is refused before it is lowered or sent, with the figure."""

from __future__ import annotations

from device_profiler.device import Device
from device_profiler.errors import OutOfMemory
from device_profiler.lowering.forms import split
from search_spaces.blocks import attention_of
from search_spaces.ends import decoder_peak_elements
from search_spaces.workload import BYTES_PER_ELEMENT, Workload


def predicted_peak_mb(workload: Workload, lowering: str) -> float:
    """The least a block needs for activations: input, output and, where attention is spelled out, all its scores.

    Of a decoder's call: input and output of one operation at full resolution. Nothing is known of other workloads.

    MB of 10^6 bytes. A lower bound, so that nothing which could run is refused.
    """
    element = BYTES_PER_ELEMENT[workload.precision]
    if workload.block == "decoder":
        return decoder_peak_elements(workload) * element / 1e6
    if not workload.is_block:
        return 0.0
    tensor = workload.batch * workload.frames * workload.channels * workload.height * workload.width * element
    total = 2 * tensor
    attention = attention_of(workload)
    if attention and split(lowering)[0] == "decomposed":
        total += attention.groups * attention.heads * attention.queries * attention.keys * element
    return total / 1e6


def admit(workload: Workload, lowering: str, device: Device) -> None:
    """Let a workload pass that may fit.

    Raises:
        OutOfMemory: if its score matrix or predicted peak is over the device's ``memory_limit_mb``.
    """
    limit = device.memory_limit_mb
    if limit is None:
        return
    needed = predicted_peak_mb(workload, lowering)
    if needed <= limit:
        return
    attention = attention_of(workload)
    shape = f"{workload.frames}x{workload.height}x{workload.width}"
    if attention and split(lowering)[0] == "decomposed":
        score = attention.groups * attention.queries * attention.keys * BYTES_PER_ELEMENT[workload.precision] / 1e6
        raise OutOfMemory(
            f"{workload.block} needs {_amount(score)} for one {workload.precision} score matrix per head "
            f"({attention.heads} heads) at {shape}, {_amount(needed)} in all, over the device's {_amount(limit)}; "
            "drop it from this position or allow a fused lowering"
        )
    if workload.block == "decoder":
        raise OutOfMemory(
            f"decoder {workload.name} needs {_amount(needed)} for one operation at full resolution on a tile of "
            f"{shape} latents, over the device's {_amount(limit)}; use a smaller tile or another decoder"
        )
    raise OutOfMemory(
        f"{workload.block} needs {_amount(needed)} for input and output at {shape}, "
        f"over the device's {_amount(limit)}; use a smaller clip"
    )


def _amount(mb: float) -> str:
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{mb:.0f} MB"
