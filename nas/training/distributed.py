"""Several processes that train as one: the same path everywhere, and only the gradients of that path averaged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from device_profiler import host
from nas.errors import NasError

BUCKET = 25_000_000  # bytes that are sent at a time
LAUNCHED, PEER_LOST = (
    "NAS_LAUNCHED",
    75,
)  # set by nas.training.launch, and how a process tells it that another one is gone
REMEDY = "run the same command to go on from the last checkpoint"


class PeerLost(NasError):
    """Another process of the same training is gone."""


@dataclass(frozen=True)
class World:
    """This process among those that train together; alone, every method is free.

    Attributes:
        rank: which one it is. size: how many there are. device: where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def open(cls, device: str, key: str = "train.device") -> World:
        """Join the processes that torchrun, accelerate or ``nas train --processes`` started, if any did.

        With CUDA each process takes the device of its local rank, and NCCL; on a CPU gloo.

        Args:
            key: the setting that names the device, for the error.

        Raises:
            NasError: if the device cannot be used, or the processes do not find each other.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, usable_device(device, key))
        from accelerate import PartialState

        try:
            kind = torch.device(device).type
        except RuntimeError as error:
            raise NasError(f"{key}: {device!r} is no device ({_first(error)}); use cpu or cuda") from None
        try:
            state = PartialState(cpu=kind == "cpu")
        except (RuntimeError, ValueError, OSError) as error:
            raise NasError(f"the {os.environ['WORLD_SIZE']} processes did not meet ({_first(error)})") from error
        return cls(state.process_index, state.num_processes, usable_device(str(state.device), key))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks to people."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` items of a batch are this process's."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def mean(self, values: Sequence[float]) -> list[float]:
        """The average over all processes, equal to the last bit on each."""
        if self.size == 1:
            return list(values)
        packed = torch.tensor(values, dtype=torch.float64, device=self._wire)
        with self.together():
            torch.distributed.all_reduce(packed)
        return (packed / self.size).tolist()

    def say(self, value: int) -> int:
        """The main process's value, for everyone."""
        if self.size == 1:
            return value
        packed = torch.tensor([value], dtype=torch.int64, device=self._wire)
        with self.together():
            torch.distributed.broadcast(packed, 0)
        return int(packed)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of those parameters that have one, in buckets.

        Every process must have walked the same path: which gradients there are is not asked, so nothing is searched.
        """
        if self.size == 1:
            return
        waiting: list[Tensor] = []
        filled = 0
        for parameter in parameters:
            if parameter.grad is None:
                continue
            waiting.append(parameter.grad)
            filled += parameter.grad.numel() * parameter.grad.element_size()
            if filled >= BUCKET:
                self._send(waiting)
                waiting, filled = [], 0
        self._send(waiting)

    def _send(self, gradients: list[Tensor]) -> None:
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with self.together():
            torch.distributed.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Until all processes are here."""
        self.say(0)

    @property
    def _wire(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work in which all processes take part: one that is gone ends it in a sentence.

        Raises:
            PeerLost: if so.
        """
        try:
            yield
        except RuntimeError as error:  # what every back-end raises
            known = ("onnection", "peer", "imed out", "imeout", "Socket", "NCCL", "Broken pipe")
            if self.size == 1 or not any(word in str(error) for word in known):
                raise
            raise PeerLost(f"another of the {self.size} processes ended ({_first(error)}); {REMEDY}") from error

    def close(self) -> None:
        """Leave the others."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def usable_device(name: str, key: str) -> torch.device:
    """The device, once it has held a number.

    Raises:
        NasError: if this machine or this build of torch has none of that name.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise NasError(f"{key}: {name!r} cannot be used here ({_first(error)}); use cpu, or see nas doctor") from error
    return device


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far, in MB: the device's, or of a CPU this process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(host.most_resident_mb(), 1)


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
