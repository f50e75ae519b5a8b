"""In what numbers a training computes: what ``auto`` means on a device, and TF32 as it was stated."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
AUTO, FULL = "auto", "fp32"
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device, begun: str | None = None) -> str:
    """``fp32``, ``bf16`` or ``fp16``: what ``auto`` stands for, or what was asked for.

    ``auto`` is what the training began with, where it has begun; else bf16 on a CUDA device that computes in it (Ampere
    and newer, not by emulation), and fp32 elsewhere: on a CPU bf16 is slower.
    """
    if wanted != AUTO:
        return wanted
    if begun is not None:
        return begun
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if able else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """A forward pass in this precision; of fp32, as it is."""
    kind = KINDS.get(precision)
    return torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None)


def set_tf32(device: torch.device, on: bool) -> None:
    """Products and convolutions of fp32 numbers on a CUDA device: with ten bits of mantissa (TF32), or with all.

    torch's own default is neither: convolutions with ten, products with all.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if on else "highest")
        torch.backends.cudnn.allow_tf32 = on


def sentence(device: torch.device, precision: str, tf32: bool) -> str:
    """``bf16 on cuda (NVIDIA H100), TF32 off``: said at the start."""
    if device.type != "cuda":
        return f"{precision} on {device}"
    return f"{precision} on {device} ({torch.cuda.get_device_name(device)}), TF32 {'on' if tf32 else 'off'}"
