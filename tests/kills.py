"""A process that dies at a file operation of its own: at the n-th under a folder, and none after it is done.

The process that dies is this one, so that a hundred deaths take seconds: an exception that nothing of ours catches
stands for the kill, and whatever then still wants to write (handlers, ``finally``) finds that it cannot. A file that is
opened for writing has two places to die at: before it is there, and while it is empty; weights a third, half written.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

NAMED = ("replace", "rename", "mkdir", "unlink", "remove", "rmdir", "link", "symlink", "truncate")


class Killed(BaseException):
    """The process ended here."""


class Counter:
    """Places to die at, counted; at the ``fatal``-th it happens, and at every later one again."""

    def __init__(self, folder: Path, fatal: int | None, die: Callable[[], Any]) -> None:
        self.folder, self.fatal, self.passed, self.die = str(folder), fatal, 0, die

    def place(self) -> None:
        self.passed += 1
        if self.fatal is not None and self.passed >= self.fatal:
            self.die()

    def concerns(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(self.folder)


def killed() -> None:
    """Die as an exception that nothing catches."""
    raise Killed


@contextmanager
def counted(folder: Path, fatal: int | None = None, die: Callable[[], Any] = killed) -> Iterator[Counter]:
    """Count the file operations under ``folder``'s name (it, what is in it, what lies beside it), or die at one."""
    counter = Counter(folder, fatal, die)
    real_open, real_low, real_save, real_sync = io.open, os.open, safetensors.torch.serialize_file, os.fsync

    def named(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **more: Any) -> Any:
            if counter.concerns(path) or more.get("dir_fd") is not None:  # inside of a tree that is deleted
                counter.place()
            return real(path, *arguments, **more)

        return call

    def opened(path: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        writes = counter.concerns(path) and any(letter in mode for letter in "wax+")
        if writes:
            counter.place()
        file = real_open(path, mode, *arguments, **more)
        if writes:
            try:
                counter.place()
            except Killed:
                file.close()
                raise
        return file

    def opened_low(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        writes = counter.concerns(path) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes:
            counter.place()
        handle = real_low(path, flags, *arguments, **more)
        if writes:
            try:
                counter.place()
            except Killed:
                os.close(handle)
                raise
        return handle

    def saved(tensors: Any, path: Any, *arguments: Any, **more: Any) -> None:
        counter.place()
        real_save(tensors, path, *arguments, **more)
        try:
            counter.place()
        except Killed:
            data = Path(path).read_bytes()
            with real_open(path, "wb") as file:
                file.write(data[: len(data) // 2])
            raise

    def synced(handle: Any) -> None:
        counter.place()
        real_sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMED:
            patch.setattr(os, name, named(getattr(os, name)))
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        patch.setattr(safetensors.torch, "serialize_file", saved)
        patch.setattr(os, "open", opened_low)
        patch.setattr(os, "fsync", synced)
        yield counter


def die_everywhere(
    folder: Path, work: Callable[[Path], object], result: Callable[[Path], Any], every: int = 1
) -> tuple[int, list[str]]:
    """Die at each ``every``-th place of ``work``, then let it go on.

    Args:
        work: does all of it in a folder that may hold a part of it already. result: what it made, to compare.

    Returns:
        How many deaths there were, and for each that was not survived a line: the place, and what came of it.
    """
    with counted(folder / "whole") as counter:
        work(folder / "whole")
    wanted, lost = result(folder / "whole"), []
    places = range(1, counter.passed + 1, every)
    for place in places:
        out = folder / f"killed-{place}"
        with pytest.raises(Killed), counted(out, place):
            work(out)
        try:
            work(out)
        except Exception as error:
            lost.append(f"{place}: {type(error).__name__}: {error}")
            continue
        if result(out) != wanted:
            lost.append(f"{place}: another result")
    return len(places), lost
