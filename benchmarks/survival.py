"""What kills, neighbours and strangers do to the commands: every command that writes, at every file operation.

**Kills.** A fork of this process runs a command in a copy of a small workshop and ends, as with `kill -9`, at one of
its file operations; then the same command runs again. `refused_after` counts those that refuse what the killed one
left; `lost` those that end with another result than undisturbed (litter included), or whose earlier output was, after
the kill, neither the old nor the new one. **Neighbours.** Every pair of commands at once in one folder; who is refused
runs again: `lost_by_neighbour` counts pairs that end with another result than one after the other. **Strangers.**
Folders with links, modules, pickles and code: `written_outside` and `code_run`.

Files that differ between two undisturbed runs (they hold times and process numbers) are compared by being there alone.
Prints tables and one JSON line; exit code 1 if anything was lost, refused, written outside or run. All of it takes over
an hour on two cores: `--stored` prints what benchmarks/data/survival.json keeps, `--store` writes it.

    python benchmarks/survival.py [--quick] [--jobs 2] [--store | --stored]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile import HOSTILE, OUTSIDE, Hostile
from mortal import COMMANDS, KILLED, Command, age, clear, digests, forked, make_workshop, start, wait

from nas.run.folder import commit

STORED = Path(__file__).parent / "data" / "survival.json"
SLOW_KILLS, ANY_KILLS, WANTED = 12, 48, 500  # at most so many places of a slow command, of any other; kills in all
QUICK = ("space show", "table report", "table merge", "sample over a video", "report")
NEEDED = ("profile", "train", "search", "build", *QUICK)  # to have something for them
TARGETS = ("lost", "refused_after", "lost_by_neighbour", "written_outside", "code_run")


class Bench:
    """The workshop, what each command leaves in it undisturbed, and a place for copies."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.shop = folder, folder / "shop"
        self.commands = [command for command in COMMANDS if command.name in names]
        self.whole: dict[str, dict[str, str]] = {}
        self.volatile: dict[str, set[str]] = {}
        self.places: dict[str, int] = {}

    def prepare(self, names: Sequence[str]) -> None:
        """Make the workshop: each of these commands once, in order."""
        make_workshop(self.shop)
        for command in COMMANDS:
            if command.name in names:
                self._go(command, self.shop)

    def know(self) -> None:
        """Run every command twice undisturbed: what it leaves, what of that is never the same, and how long it is."""
        for command in self.commands:
            found = []
            for _ in range(2):
                copy = self.copy(command)
                self._go(command, copy)
                found.append(digests(copy, ["."]))
                self.places[command.name] = int((self.folder / f"log-{os.getpid()}.places").read_text())
                shutil.rmtree(copy)
            one, two = found
            self.whole[command.name] = one
            self.volatile[command.name] = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}

    def copy(self, *commands: Command) -> Path:
        """A copy of the workshop in which these commands have all to do."""
        copy = Path(tempfile.mkdtemp(dir=self.folder)) / "shop"
        shutil.copytree(self.shop, copy, symlinks=True)
        for command in commands:
            clear(copy, command)
        return copy

    def run(self, command: Command, folder: Path, fatal: int | None = None) -> tuple[int, str]:
        """Its exit code, and the last that it said."""
        log = self.folder / f"log-{os.getpid()}"
        code = forked(folder, command.words, log, fatal)
        return code, (log.read_text(errors="replace").strip().splitlines() or [""])[-1][:200]

    def _go(self, command: Command, folder: Path) -> None:
        code, said = self.run(command, folder)
        if code not in command.code:
            raise SystemExit(f"{command.name} ended with {code} undisturbed: {said}")


BENCH: Bench  # of this process and of those forked from it


def differing(command: Command, folder: Path) -> list[str]:
    """What of a folder is not as the command leaves it undisturbed."""
    whole, found = BENCH.whole[command.name], digests(folder, ["."])
    return [n for n in whole.keys() | found.keys() if _other(whole, found, n, BENCH.volatile[command.name])]


def _other(whole: dict[str, str], found: dict[str, str], name: str, volatile: set[str]) -> bool:
    if name in volatile:
        return name in whole and name not in found
    return whole.get(name) != found.get(name)


def kill(case: tuple[str, int]) -> dict[str, Any]:
    """Kill a command at one place and run it again."""
    command, place = next(c for c in BENCH.commands if c.name == case[0]), case[1]
    copy = BENCH.copy(command)
    before = digests(copy, command.makes)
    code, said = BENCH.run(command, copy, place)
    found: dict[str, Any] = {"command": command.name, "place": place, "killed": code == KILLED}
    if command.keeps:
        after, whole, volatile = digests(copy, command.makes), BENCH.whole[command.name], BENCH.volatile[command.name]
        torn = [n for n in before if n not in volatile and after.get(n) not in (before[n], whole.get(n))]
        found["torn"] = torn + [name for name in before if name not in after and name in whole]
    age(copy)
    code, said = BENCH.run(command, copy)
    found |= {"refused": said if code not in command.code else "", "differs": differing(command, copy)[:5]}
    shutil.rmtree(copy.parent)
    return found


def pair(case: tuple[str, str]) -> dict[str, Any]:
    """Run two commands at once, and what was refused again; compare with one after the other."""
    ours = [next(c for c in BENCH.commands if c.name == name) for name in case]
    ends = []
    for together in (True, False):
        copy = BENCH.copy(*ours)
        if together:
            logs = [BENCH.folder / f"log-{os.getpid()}-{i}" for i in range(2)]
            running = [start(copy, command.words, log) for command, log in zip(ours, logs, strict=True)]
            codes = [wait(process) for process in running]
        else:
            codes = [99, 99]
        for index, command in enumerate(ours):
            if codes[index] not in command.code:
                codes[index], said = BENCH.run(command, copy)
        ends.append((codes, digests(copy, [part for command in ours for part in command.makes])))
        shutil.rmtree(copy.parent)
    (codes, found), (_, wanted) = ends
    volatile = set().union(*(BENCH.volatile[command.name] for command in ours))
    lost = [name for name in wanted.keys() | found.keys() if _other(wanted, found, name, volatile)]
    refused = [c.name for c, code in zip(ours, codes, strict=True) if code not in c.code]
    return {"pair": list(case), "refused": refused, "differs": lost[:5]}


def visit(index: int) -> dict[str, Any]:
    """Do in a stranger's folder what a person does."""
    hostile: Hostile = HOSTILE[index]
    commands = [command for command in COMMANDS if command.name in hostile.commands]
    copy = BENCH.copy(*(command for command in commands if command.name != "evaluate"))
    outside, proof = copy.parent / "outside", copy.parent / "proof"
    outside.mkdir()
    (outside / OUTSIDE).write_text("mine\n")
    hostile.plant(copy, outside, proof)
    for command in commands:
        if hostile.shell:
            words = [sys.executable, "-P", "-W", "ignore", "-m", "nas.cli", *command.words]
            path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
            subprocess.run(
                words,
                cwd=copy,
                capture_output=True,
                input=b"y\ny\n",
                timeout=300,
                env={**os.environ, "PYTHONPATH": path},
            )
        else:
            BENCH.run(command, copy)
    there = {file.name: file.read_text(errors="replace") for file in outside.rglob("*") if file.is_file()}
    stray = [path.name for path in copy.parent.iterdir() if path.name not in ("shop", "outside", "proof")]
    found = {"folder": hostile.name, "outside": there != {OUTSIDE: "mine\n"} or bool(stray), "ran": proof.exists()}
    shutil.rmtree(copy.parent)
    return found


# All of them --------------------------------------------------------------------------------------------------------


def over(function: Callable[[Any], dict[str, Any]], cases: Sequence[Any], jobs: int) -> list[dict[str, Any]]:
    """All cases, in processes forked from this one."""
    if not cases:
        return []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(_shown(function.__name__, pool.map(function, cases), len(cases)))


def _shown(name: str, found: Iterable[dict[str, Any]], total: int) -> Iterable[dict[str, Any]]:
    began = told = time.monotonic()
    for done, one in enumerate(found, 1):
        if time.monotonic() - told > 20:
            told = time.monotonic()
            print(f"{name:6} {done}/{total}, {told - began:.0f} s", file=sys.stderr, flush=True)
        yield one


def spread(command: Command, places: int, quick: bool) -> list[int]:
    """The places at which a command is killed: all, or some evenly spread."""
    most = 3 if quick else SLOW_KILLS if command.slow else ANY_KILLS
    return sorted({1 + i * places // min(most, places) for i in range(min(most, places))})


def measure(quick: bool, jobs: int) -> dict[str, Any]:
    """All three parts."""
    global BENCH
    names = QUICK if quick else [command.name for command in COMMANDS]
    with tempfile.TemporaryDirectory() as folder:
        BENCH = Bench(Path(folder), names)
        BENCH.prepare(NEEDED if quick else names)
        BENCH.know()
        deaths = [(c.name, place) for c in BENCH.commands for place in spread(c, BENCH.places[c.name], quick)]
        writers = [command.name for command in BENCH.commands if " over " not in command.name]
        pairs = list(itertools.combinations_with_replacement(writers, 2))
        known = [i for i, one in enumerate(HOSTILE) if set(one.commands) <= {*NEEDED}]
        hostile = known[::8] if quick else list(range(len(HOSTILE)))
        killed = over(kill, deaths, jobs)
        together = over(pair, pairs, jobs)
        visited = over(visit, hostile, jobs)
        places = dict(BENCH.places)
        by_presence = sorted({name for names in BENCH.volatile.values() for name in names})
    show(killed, together, visited, places)
    died = [one for one in killed if one["killed"]]
    return {
        "kills": len(died),
        "lost": sum(bool(one["differs"] or one.get("torn")) and not one["refused"] for one in died),
        "refused_after": sum(bool(one["refused"]) for one in died),
        "concurrent_pairs": len(together),
        "lost_by_neighbour": sum(bool(one["differs"] or one["refused"]) for one in together),
        "hostile_folders": len(visited),
        "written_outside": sum(one["outside"] for one in visited),
        "code_run": sum(one["ran"] for one in visited),
        "commands": len(BENCH.commands),
        "compared_by_presence": by_presence,
    }


def show(
    killed: list[dict[str, Any]], together: list[dict[str, Any]], visited: list[dict[str, Any]], places: dict[str, int]
) -> None:
    """Tables for people, and each thing that went wrong."""
    print(f"{'command':<24} {'places':>7} {'kills':>6} {'lost':>5} {'refused':>8}")
    for name in places:
        mine = [one for one in killed if one["command"] == name and one["killed"]]
        lost = sum(bool(one["differs"] or one.get("torn")) and not one["refused"] for one in mine)
        print(f"{name:<24} {places[name]:>7} {len(mine):>6} {lost:>5} {sum(bool(o['refused']) for o in mine):>8}")
    print(f"\n{len(together)} pairs of commands at once, {len(visited)} folders of strangers")
    for one in killed:
        if one["differs"] or one["refused"] or one.get("torn"):
            print(f"  killed: {json.dumps(one)}")
    for one in together:
        if one["differs"] or one["refused"]:
            print(f"  pair: {json.dumps(one)}")
    for one in visited:
        if one["outside"] or one["ran"]:
            print(f"  stranger: {json.dumps(one)}")


def main() -> int:
    """Run, or print what is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five commands, three kills each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    parser.add_argument("--store", action="store_true", help="keep the figures in benchmarks/data")
    parser.add_argument("--stored", action="store_true", help="print the figures that are kept")
    args = parser.parse_args()
    if args.stored:
        told = json.loads(STORED.read_text())
    else:
        import torch

        torch.set_num_threads(1)  # a process with threads of its own cannot be forked
        warnings.filterwarnings("ignore")
        began = time.monotonic()
        told = {**measure(args.quick, args.jobs), "quick": args.quick, "seconds": round(time.monotonic() - began)}
        told |= {"commit": commit(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        if args.store:
            STORED.write_text(json.dumps(told, indent=1) + "\n")
    enough = args.quick or told["kills"] >= WANTED
    print(json.dumps({"benchmark": "survival", **told}))
    return 0 if enough and not any(told[name] for name in TARGETS) else 1


if __name__ == "__main__":
    raise SystemExit(main())
