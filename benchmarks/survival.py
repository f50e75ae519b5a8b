"""What kills, neighbours and strangers do to the commands: every command that writes, at every file operation.

**Kills.** A fork of this process runs a command in a copy of a small workshop and ends, as with `kill -9`, at one of
its file operations; then the same command runs again. `refused_after` counts those that refuse what the killed one
left; `lost` those that end with another result than undisturbed (litter included), or whose earlier output was, after
the kill, neither the old nor the new one. **Neighbours.** Every pair of commands at once in one folder; who is refused
runs again: `lost_by_neighbour` counts pairs that end with another result than one after the other. **Strangers.**
Folders with links, modules, pickles and code: `written_outside` and `code_run`.

Files that differ between two undisturbed runs (they hold times and process numbers) are compared by being there alone.
Prints tables and one JSON line; exit code 1 if anything was lost, refused, written outside or run. All of it takes long
on two cores: `--store` writes benchmarks/data/survival.json, `--stored` prints it.

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
WANTED = 500  # kills in all
QUICK = ("space show", "table report", "table merge", "sample over a video", "report")
NEEDED = ("profile", "train", "search", "build", *QUICK)  # to have something for them
TARGETS = ("lost", "refused_after", "lost_by_neighbour", "written_outside", "code_run")


class Bench:
    """The workshop, what each command leaves in it undisturbed, and a place for copies.

    Attributes:
        whole: by command, what it makes: file -> digest. volatile: of that, what is different each time.
        touched: what else it changes. places: its file operations.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.shop = folder, folder / "shop"
        self.commands = {command.name: command for command in COMMANDS if command.name in names}
        self.whole: dict[str, dict[str, str]] = {}
        self.volatile: dict[str, set[str]] = {}
        self.touched: dict[str, set[str]] = {}
        self.places: dict[str, int] = {}

    def prepare(self, names: Sequence[str]) -> None:
        """Make the workshop: each of these commands once, in order."""
        make_workshop(self.shop)
        for command in COMMANDS:
            if command.name in names:
                clear(self.shop, command)
                self.go(command, self.shop)
                self.whole[command.name] = digests(self.shop, command.makes)

    def know(self, jobs: int) -> None:
        """Run every command again undisturbed: what of its files is never the same, and how long it is."""
        for name, told in zip(self.commands, over(undisturbed, list(self.commands), jobs), strict=True):
            one, two = self.whole[name], told["whole"]
            self.volatile[name] = {n for n in one.keys() | two.keys() if one.get(n) != two.get(n)}
            self.touched[name], self.places[name] = set(told["touched"]), told["places"]

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

    def go(self, command: Command, folder: Path) -> int:
        """Run a command that must go well; how many places it has."""
        began = time.monotonic()
        code, said = self.run(command, folder)
        if code not in command.code:
            raise SystemExit(f"{command.name} ended with {code} undisturbed: {said}")
        print(f"{command.name:20} {time.monotonic() - began:5.1f} s undisturbed", file=sys.stderr, flush=True)
        return int((self.folder / f"log-{os.getpid()}.places").read_text())

    def differing(self, command: Command, folder: Path, before: dict[str, str]) -> list[str]:
        """What a folder has that is not as the command leaves it undisturbed."""
        name, after = command.name, digests(folder, ["."])
        made = digests(folder, command.makes)
        wrong = [n for n in self.whole[name].keys() | made.keys() if self.other(name, made, n)]
        rest = (before.keys() | after.keys()) - made.keys() - self.whole[name].keys()
        return wrong + [
            n for n in rest if before.get(n) != after.get(n) and not (n in self.touched[name] and n in after)
        ]

    def other(self, name: str, found: dict[str, str], file: str) -> bool:
        """Whether a file is not the one that the command leaves."""
        if file in self.volatile[name]:
            return file in self.whole[name] and file not in found
        return self.whole[name].get(file) != found.get(file)


BENCH: Bench  # of this process and of those forked from it


def undisturbed(name: str) -> dict[str, Any]:
    """A command once more: what it makes, what else it changes, and its places."""
    command = BENCH.commands[name]
    copy = BENCH.copy(command)
    before = digests(copy, ["."])
    places = BENCH.go(command, copy)
    after, whole = digests(copy, ["."]), digests(copy, command.makes)
    shutil.rmtree(copy.parent)
    touched = [n for n in after.keys() - whole.keys() if before.get(n) != after[n]]
    return {"whole": whole, "touched": touched, "places": places}


def kill(case: tuple[str, int]) -> dict[str, Any]:
    """Kill a command at one place and run it again."""
    command, place = BENCH.commands[case[0]], case[1]
    copy = BENCH.copy(command)
    rest, before = digests(copy, ["."]), digests(copy, command.makes)
    code, said = BENCH.run(command, copy, place)
    found: dict[str, Any] = {"command": command.name, "place": place, "killed": code == KILLED, "torn": []}
    if command.keeps:
        after, whole, volatile = digests(copy, command.makes), BENCH.whole[command.name], BENCH.volatile[command.name]
        found["torn"] = [n for n in before if n in whole and n not in after]
        found["torn"] += [
            n for n in after if n in before and n not in volatile and after[n] not in (before[n], whole[n])
        ]
    age(copy)
    code, said = BENCH.run(command, copy)
    found |= {"refused": "" if code in command.code else said, "differs": BENCH.differing(command, copy, rest)[:5]}
    shutil.rmtree(copy.parent)
    return found


def pair(case: tuple[str, str]) -> dict[str, Any]:
    """Run two commands at once, and again what was refused; each leaves what it leaves alone."""
    ours = [BENCH.commands[name] for name in case]
    copy = BENCH.copy(
        *(command for command in ours if command.name != "run")
    )  # which does what another's lack asks for
    logs = [BENCH.folder / f"log-{os.getpid()}-{i}" for i in range(2)]
    running = [start(copy, command.words, log) for command, log in zip(ours, logs, strict=True)]
    codes = [wait(process) for process in running]
    said = ["", ""]
    for index, command in enumerate(ours):
        if codes[index] not in command.code:
            codes[index], said[index] = BENCH.run(command, copy)
    lost = []
    for command in ours:
        made = digests(copy, command.makes)
        if command.name != "run":
            lost += [n for n in BENCH.whole[command.name].keys() | made.keys() if BENCH.other(command.name, made, n)]
    shutil.rmtree(copy.parent)
    refused = [text for command, code, text in zip(ours, codes, said, strict=True) if code not in command.code]
    return {"pair": list(case), "refused": refused, "differs": lost[:5]}


def visit(index: int) -> dict[str, Any]:
    """Do in a stranger's folder what a person does."""
    hostile: Hostile = HOSTILE[index]
    commands = [command for command in BENCH.commands.values() if command.name in hostile.commands]
    copy = BENCH.copy(*(command for command in commands if command.name != "evaluate"))
    outside, proof = copy.parent / "outside", copy.parent / "proof"
    outside.mkdir()
    (outside / OUTSIDE).write_text("mine\n")
    hostile.plant(copy, outside, proof)
    for command in commands:
        if hostile.alone:
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
        if any(one.get(wrong) for wrong in ("differs", "torn", "refused", "outside", "ran")):
            print(f"  {json.dumps(one)}", file=sys.stderr, flush=True)
        if time.monotonic() - told > 20:
            told = time.monotonic()
            print(f"{name:6} {done}/{total}, {told - began:.0f} s", file=sys.stderr, flush=True)
        yield one


def spread(command: Command, places: int, quick: bool) -> list[int]:
    """The places at which a command is killed: all, or some evenly spread."""
    most = min(3 if quick else command.kills, places)
    return sorted({1 + i * places // most for i in range(most)})


def measure(quick: bool, jobs: int) -> dict[str, Any]:
    """All three parts."""
    global BENCH
    names = QUICK if quick else [command.name for command in COMMANDS]
    with tempfile.TemporaryDirectory() as folder:
        BENCH = Bench(Path(folder), names)
        BENCH.prepare(NEEDED if quick else names)
        BENCH.know(jobs)
        deaths = [(c.name, at) for c in BENCH.commands.values() for at in spread(c, BENCH.places[c.name], quick)]
        pairs = list(itertools.combinations_with_replacement([name for name in names if " over " not in name], 2))
        known = [i for i, one in enumerate(HOSTILE) if set(one.commands) <= {*names}]
        killed = over(kill, deaths, jobs)
        visited = over(visit, known[::8] if quick else known, jobs)
        together = over(pair, pairs, jobs)
    show(killed, together, visited, BENCH.places)
    died = [one for one in killed if one["killed"]]
    return {
        "kills": len(died),
        "lost": sum(bool(one["differs"] or one["torn"]) and not one["refused"] for one in died),
        "refused_after": sum(bool(one["refused"]) for one in died),
        "concurrent_pairs": len(together),
        "lost_by_neighbour": sum(bool(one["differs"] or one["refused"]) for one in together),
        "hostile_folders": len(visited),
        "written_outside": sum(one["outside"] for one in visited),
        "code_run": sum(one["ran"] for one in visited),
        "commands": len(BENCH.commands),
        "compared_by_presence": sorted({name for names in BENCH.volatile.values() for name in names}),
    }


def show(
    killed: list[dict[str, Any]], together: list[dict[str, Any]], visited: list[dict[str, Any]], places: dict[str, int]
) -> None:
    """Tables for people, and each thing that went wrong."""
    print(f"{'command':<24} {'places':>7} {'kills':>6} {'lost':>5} {'refused':>8}")
    for name in places:
        mine = [one for one in killed if one["command"] == name and one["killed"]]
        lost = sum(bool(one["differs"] or one["torn"]) and not one["refused"] for one in mine)
        print(f"{name:<24} {places[name]:>7} {len(mine):>6} {lost:>5} {sum(bool(o['refused']) for o in mine):>8}")
    print(f"\n{len(together)} pairs of commands at once, {len(visited)} folders of strangers")
    for one in killed:
        if one["differs"] or one["refused"] or one["torn"]:
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
    if args.stored and not STORED.is_file():
        parser.error("no figures are kept yet; run with --store")
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
