"""Batches of a training, each a pure function of its turn, loaded while the one before is trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nas.data.clip import Buckets, Dataset

AHEAD = 2  # batches


@dataclass(frozen=True)
class Batch:
    """video: (B, T, C, H, W) in [-1, 1], or latents; one caption a clip; what else the items hold, by name."""

    video: Tensor
    captions: list[str]
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return self.video.shape[0] * self.video.shape[1]


class Loader:
    """Turn ``n`` is items ``n * count`` and on; a share of them is this process's.

    Args:
        data: where items differ in shape (``Buckets``), a turn takes all of its own from one bucket.
        count: items a turn, over all processes. share: which of them are loaded here.
        workers: threads that read ahead; 0 loads when asked. What is read depends on the turn alone.

    Attributes:
        waited, frames: seconds that training waited for all batches so far, and the frames in them.
        frames_per_s: frames that one worker reads and decodes a second, the latest batches averaged.
    """

    def __init__(self, data: Dataset, count: int, share: Callable[[int], range], workers: int = 0) -> None:
        self.data, self.count, self.share = data, count, share
        self._pool = ThreadPoolExecutor(workers, "loader") if workers and count else None
        self._coming: dict[int, Future[tuple[Batch, float]]] = {}
        self.workers = max(1, workers)
        self.waited, self.frames = 0.0, 0
        self.frames_per_s = 0.0

    def __call__(self, turn: int) -> Batch:
        """The batch of a turn; turns usually come in order, and may jump."""
        started = time.perf_counter()
        if self._pool is None:
            batch, seconds = self._load(turn)
        else:
            coming = self._coming.pop(turn, None)
            if coming is None:  # the first one, or training went back
                for other in self._coming.values():
                    other.cancel()
                self._coming.clear()
                coming = self._pool.submit(self._load, turn)
            for later in range(turn + 1, turn + 1 + AHEAD):
                if later not in self._coming:
                    self._coming[later] = self._pool.submit(self._load, later)
            batch, seconds = coming.result()
        self.waited += time.perf_counter() - started
        self.frames += batch.frames
        speed = batch.frames / max(seconds, 1e-9)
        self.frames_per_s = speed if not self.frames_per_s else 0.9 * self.frames_per_s + 0.1 * speed
        return batch

    def _load(self, turn: int) -> tuple[Batch, float]:
        started = time.perf_counter()
        data, first = self.data, turn * self.count
        if isinstance(data, Buckets):
            data = data.bucket(turn)
        items = [data[(first + i) % len(data)] for i in self.share(self.count)]
        batch = _stacked(items)
        return batch, time.perf_counter() - started

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _stacked(items: Sequence[Mapping[str, Any]]) -> Batch:
    more = {name: torch.stack([item[name] for item in items]) for name in items[0] if name not in ("video", "caption")}
    return Batch(torch.stack([item["video"] for item in items]), [item["caption"] for item in items], more)
