"""What comes in from outside is bounded at the door: YAML, numbers, seeds, names, links, locks, terminals."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from latency_tables.errors import TableError
from latency_tables.files import locked
from latency_tables.header import Header
from latency_tables.table import Table
from latency_tables.terminal import plain
from nas.cli import main
from nas.config import SearchConfig, load, resolve, store
from nas.errors import NasError, explain, why_full
from nas.files import append, held, only_leftovers, sole_writer, write_whole
from nas.ranking.evidence import collect
from nas.report.folder import read_run
from nas.search.samplers import SAMPLERS
from nas.settings import MAX_SEED, Settings, settle
from nas.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nas.training.log import cut_metrics
from search_spaces.plan import Plan
from search_spaces.planning import load_plan
from search_spaces.reading import MAX_DEPTH, UnreadableError, parse_json, parse_yaml
from search_spaces.space import SPACES, Clip, Position, Space
from search_spaces.variant import Variant
from search_spaces.writing import folder_beside, partial_name, sweep, whole


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0), capsys.readouterr().err


# YAML ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "key 'a' stands there twice"),
        ("1: 2", "a key that is no plain text"),
        ("[" * 5000, f"nested more than {MAX_DEPTH} deep"),
        ("a: " + "9" * 5000, "over 64 bits"),
        ("a: 18446744073709551616", "over 64 bits"),
        ("a: 0b_", "'0b_' is no int"),
        ("!!bool maybe", "'maybe' is no bool"),
        ("!!float ''", "is no float"),
        ("!!timestamp 2001-13-45", "the tag 'tag:yaml.org,2002:timestamp'"),
        ("!!binary x", "the tag"),
        ("!!python/object/apply:os.system [echo]", "the tag"),
        ("!!map 3", "expected a mapping"),
        ("a: &b [*b]", "an alias of what it stands in"),
        ('a: "\\0"', "holds a NUL"),
        ('a: "\\ud800"', "holds half a character"),
        ("--- 1\n--- 2", "another document"),
        ("a: " + "x" * 1_000_001, "longer than"),
    ],
)
def test_yaml_that_is_no_plain_data_within_bounds_is_one_line(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_dates_stay_text_and_aliases_are_followed() -> None:
    assert parse_yaml("a: 2001-13-45\nb: &x {c: 1}\nd: *x\ne: {<<: *x, f: .5}") == {
        "a": "2001-13-45",
        "b": {"c": 1},
        "d": {"c": 1},
        "e": {"c": 1, "f": 0.5},
    }
    assert parse_yaml("a: 18446744073709551615") == {"a": 2**64 - 1}


def test_an_alias_bomb_is_counted_and_not_unfolded() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12))
    assert len(bomb) < 700
    with pytest.raises(UnreadableError, match="with its aliases written out"):
        parse_yaml(bomb)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", '{"a": 1}}', b"\xff"])
def test_json_that_is_none_is_one_line(text: Any) -> None:
    with pytest.raises(UnreadableError, match="is no JSON") as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


# Numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("train.learning_rate=.inf", "learning_rate: .*finite number"),
        ("search.latency_ms=inf", "latency_ms: .*finite number"),
        ("train.learning_rate=1e400", "finite number"),
        ("train.threads=9223372036854775808", "threads: .*4096"),
        ("search.trials=1000000000000", "trials: .*1000000"),
        ("train.steps=9007199254740993", "steps: "),
        ("search.sampler=nope", "sampler: .*'surrogate'"),
        ("search.adapt_steps=[1]", "adapt_steps: "),
        ("seed=-1", "seed: must be 0 to 4294967295"),
        ("space=other", "space is 'other' .* and 'tiny' as the command's SPACE"),
        ("train.init={a: {b: 1}}", "init: "),
        ("train.a.b.c=1", "train.a: unknown key"),
        ("train.steps.x=1", "train.steps: "),
    ],
)
def test_a_setting_out_of_bounds_is_refused_with_its_path(words: tuple[str, str]) -> None:
    with pytest.raises(NasError, match=words[1]) as caught:
        resolve("tiny", sets=[words[0]])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_scoring_that_cannot_be_is_refused_before_training() -> None:
    with pytest.raises(NasError, match="search.adapt_steps trains whole paths"):
        resolve("tiny", sets=["search.adapt_steps=3", "search.scoring=one_replaced"])


def test_every_sampler_has_a_name_in_the_settings() -> None:
    for name in SAMPLERS:
        assert SearchConfig(sampler=name).sampler == name  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [2**32, 2**32 + 5, 2**63, 2**64, 10**30])
def test_a_seed_that_would_repeat_a_smaller_one_is_refused(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if seed == 2**32 + 5:  # why: torch's generator on a CPU takes 32 bits
        first, second = (torch.randn(3, generator=torch.Generator().manual_seed(s)) for s in (5, seed))
        assert torch.equal(first, second)
    for sets in (f"seed={seed}", f"quality.seed={seed}"):
        with pytest.raises(NasError, match="seed: must be 0 to 4294967295"):
            resolve("tiny", sets=[sets])
    code, err = said(capsys, "sample", "none", "--prompt", "a", "--seed", seed)
    assert code == 2 and "--seed" in err and err.count("\n") == 1
    assert resolve("tiny", sets=[f"seed={MAX_SEED}"]).seed == MAX_SEED


def test_every_setting_of_any_kind_is_finite_and_of_reasonable_size() -> None:
    class Own(Settings):
        share: float = 0.0
        count: int = Field(0, ge=0)
        many: tuple[int, ...] = ()
        name: str = ""

    for wrong in ("share=nan", "count=9007199254740993", "many=[1, 9007199254740993]"):
        with pytest.raises(NasError):
            settle(Own, {}, None, [wrong])
    with pytest.raises(NasError, match="name: is a text that holds a NUL"):
        settle(Own, {"name": "a\0b"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fps: 8", "fps: .inf", "fps must be above 0 and at most 1000"),
        ("fps: 8", "fps: .nan", "fps must be above 0"),
        ("frames: 8", "frames: 8000000000", "frames must be at most 100,000"),
        ("frames: 8", "frames: 1000000000000000000000000000000", "over 64 bits"),
        ("max_layers: 2", "max_layers: 2000000000", "max_layers must be at most 64"),
        ("backbone: tiny", "backbone: {name: tiny, config: {layers_per_block: 2000000000}}", "must be at most 64"),
        ("kernel_size=3", "kernel_size=999999999", "kernel_size must be at most 99"),
        ("kernel_size=3", "kernel_size=" + "9" * 5000, "cannot read variant"),
        ("tokens: 16", "tokens: [1]", "text.tokens must be a whole number"),
        ("backbone: tiny", "backbone: [tiny]", "backbone must map"),
        ("description:", "description: {a: b}\nother:", "other: unknown key"),
    ],
)
def test_a_space_beyond_reason_is_refused_at_once(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (SPACES / "tiny.yaml").read_text()
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        Space.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


LITTLE = {"height": 48, "width": 48, "fps": 8}


def test_a_space_made_of_stored_values_is_checked_as_a_files() -> None:
    stored = Space.load("tiny").to_json()
    assert Space.from_json(stored).fingerprint == Space.load("tiny").fingerprint
    with pytest.raises(ValueError, match="frames must be at most"):
        Space.from_json(
            {**stored, "clips": {**stored["clips"], "training": {**stored["clips"]["training"]} | {"frames": 10**30}}}
        )
    with pytest.raises(ValueError, match="must be a number"):
        Clip(8, 48, 48, "fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_layers must be at most"):
        Position("here", 16, 1, 2_000_000_000, (Variant.of("Conv1D", kernel_size=3),))


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("positions", 0, "channels"), "many", r"positions\[0\].channels"),
        (("positions", 0, "layers"), {"a": 1}, r"positions\[0\].layers"),
        (("positions", 0, "max_layers"), 2_000_000_000, r"positions\[0\].max_layers"),
        (("points", 1, "skips"), [["conv_in"]], r"points\[1\].skips"),
        (("backbone",), [], "backbone"),
        (("clip",), 3, "clip"),
        (("text_encoder",), {"workload": 1, "parameters": 2}, "text_encoder.workload"),
        (("schema",), 9, "schema"),
    ],
)
def test_a_plan_of_other_kinds_names_the_field(path: tuple[Any, ...], value: Any, where: str, tmp_path: Path) -> None:
    plan = load_plan("tiny").to_json()
    holder = plan
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    file = tmp_path / "tiny.plan.json"
    file.write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=rf"is no plan of schema 1 \({where}") as caught:
        Plan.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "where"),
    [
        ("additivity", {"mape": "low"}, "additivity.mape"),
        ("additivity", {"networks": -1}, "additivity.networks"),
        ("additivity", {"samples": [3]}, "additivity.samples"),
        (
            "additivity",
            {"samples": [{"predicted_ms": 1.0, "measured_ms": 0.0}]},
            r"additivity.samples\[0\].measured_ms",
        ),
        ("reference", {"latency_ms": [1]}, "reference.latency_ms"),
        ("reference", {"others": [{"rows": 3}]}, r"reference.others\[0\].rows"),
        ("correction", {"scale": {}}, "correction.scale"),
        ("correction", {"form": 3}, "correction.form"),
    ],
)
def test_a_tables_evidence_of_other_kinds_names_the_field(part: str, value: Any, where: str) -> None:
    with pytest.raises(TableError, match=f"table header: {where} must be"):
        Header("board", "roofline", **{part: value})


# Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "m", "--prompt", "a", "--frames", "0"),
        ("sample", "m", "--prompt", "a", "--height", "0"),
        ("sample", "m", "--prompt", "a", "--steps", "1000000000000"),
        ("sample", "m", "--prompt", "a", "--guidance", "nan"),
        ("sample", "m", "--prompt", "a", "--out", "/"),
        ("run", "tiny", "--out", "/"),
        ("build", "r", "--out", "/"),
        ("profile", "tiny", "--networks", "1000000000"),
        ("rank", "r", "--steps", "1000000000000"),
        ("search", "r", "--trials", "1000000000000"),
        ("search", "r", "--latency-ms", "inf"),
        ("search", "r", "--latency-ms", "5", "--set", "search.latency_ms=6"),
        ("train", "tiny", "--out", "r", "--init", "a", "--set", "train.init=b"),
        ("dashboard", "r", "--port", "70000"),
        ("train", "tiny", "--out", "a\0b"),
        ("nothing",),
        ("search",),
        ("search", "r", "--nothing"),
    ],
)
def test_an_option_out_of_bounds_is_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, err = said(capsys, *words)
    assert code == 2 and err.startswith("nas: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "f"), "f: the disk is full; free some space"),
        (OSError(errno.EDQUOT, "quota", "f"), "quota"),
        (OSError(errno.EFBIG, "large", "f"), "ulimit -f"),
        (OSError(errno.ENAMETOOLONG, "long", "x" * 400), "a name longer than file systems allow"),
        (OSError(errno.ENOSYS, "Function not implemented", "f"), "f: function not implemented"),
        (OSError(errno.EMFILE, "many", "f"), "ulimit -n"),
        (PermissionError(errno.EACCES, "no", "f"), "no permission"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ours(error: Exception, words: str) -> None:
    sentence = explain(error)
    assert sentence is not None and words in sentence and len(sentence) < 250
    assert explain(KeyError("x")) is None


def test_a_full_disk_is_told_from_safetensors_words_too() -> None:
    assert why_full(RuntimeError("I/O error: Disk quota exceeded (os error 122)")) == why_full(
        OSError(errno.EDQUOT, "q")
    )
    assert why_full(RuntimeError("shape")) is None


# Files of a stranger ------------------------------------------------------------------------------------


def test_a_link_under_a_lock_or_a_log_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "letter.txt"
    outside.write_text("dear reader")
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "search.lock", "metrics.jsonl"):
        (run / name).symlink_to(outside)
    with pytest.raises(NasError, match="a link stands where our lock"), sole_writer(run):
        pass
    with pytest.raises(NasError, match="a link stands where our lock"), held(run / "search.lock", wait=True):
        pass
    with pytest.raises(NasError, match="a link stands where our log"):
        append(run / "metrics.jsonl")
    (run / "new.lock").symlink_to(tmp_path / "made")
    with pytest.raises(NasError), held(run / "new.lock"):
        pass
    assert outside.read_text() == "dear reader" and not (tmp_path / "made").exists()


def test_links_under_names_of_our_files_are_replaced_and_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "letter.txt"
    outside.write_text("dear reader")
    run = tmp_path / "run"
    run.mkdir()
    for name in (
        "rank.json",
        ".rank.json.partial",
        "rank.partial",
        "front.partial",
        "explain.partial",
        "metrics.partial",
    ):
        (run / name).symlink_to(outside)
    write_whole(run / "rank.json", "{}")
    from nas.run.folder import write_json

    write_json(run / "explain.json", {})
    cut_metrics(run / "metrics.jsonl", 3)
    assert outside.read_text() == "dear reader"
    assert not (run / "rank.json").is_symlink() and (run / "rank.json").read_text() == "{}"


def test_temporary_names_are_new_each_time_short_and_swept_when_their_writer_is_gone(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250)
    assert partial_name(target) != partial_name(target)
    write_whole(target, "whole")  # the file system allows 255 bytes
    left = partial_name(target)
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    with whole(target) as file:
        file.write(b"again")
        (living,) = [path for path in tmp_path.iterdir() if path not in (target, left)]
        os.utime(living, (1, 1))
        sweep(target)
        assert living.exists()  # held by its writer
    assert sorted(tmp_path.iterdir()) == [target] and target.read_bytes() == b"again"


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_text("old")
    with pytest.raises(OSError), whole(target) as file:
        file.write(b"new")
        raise OSError(errno.EDQUOT, "quota")
    with pytest.raises(KeyboardInterrupt), folder_beside(target) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and target.read_text() == "old"


def test_a_folder_with_nothing_but_our_leftovers_is_ours(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    partial_name(run / "config.yaml").write_text("half")
    assert only_leftovers(run)
    store(resolve("tiny"), run)
    assert load(run).space == "tiny"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_flock_is_locked_otherwise_or_told_of(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(descriptor: Any, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", missing)
    with sole_writer(tmp_path / "run"), held(tmp_path / "run" / "search.lock", wait=True):
        write_whole(tmp_path / "run" / "a", "whole")
    assert capsys.readouterr().err == ""  # POSIX locks took its place
    with locked(tmp_path):  # of a folder, which those do not lock: a file stands for it
        assert (tmp_path / ".table.lock").is_file()
    assert not (tmp_path / ".table.lock").exists()
    monkeypatch.setattr(fcntl, "lockf", missing)
    with sole_writer(tmp_path / "run"), sole_writer(tmp_path / "run"):
        pass
    err = capsys.readouterr().err
    assert err.count("this file system has no locks") == 1  # once a folder


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    path = save_checkpoint(tmp_path, 3, Checkpoint({"weights": {"a": torch.ones(4)}}, {}), keep=1)

    def denied(self: Path, *_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", denied)
        with pytest.raises(PermissionError):
            load_checkpoint(path)
    file = path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x10  # a flipped bit keeps the length
    file.write_bytes(data)
    with pytest.raises(NasError, match="not the bytes that were written"):
        load_checkpoint(path)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "bytes": {"../../weights": 3}}))
    with pytest.raises(NasError, match="damaged checkpoint"):
        load_checkpoint(path)


# Logs and tables of a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"{", b'{"loss": 1}', b"[]", b'{"step": "x"}', b"[" * 100_000, b""])
def test_a_damaged_line_of_a_log_costs_itself_and_not_those_after(bad: bytes, tmp_path: Path) -> None:
    rows = [json.dumps({"step": step, "loss": 1.0}).encode() for step in range(1, 6)]
    log = tmp_path / "supernet" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_bytes(b"\n".join([*rows[:2], bad, *rows[2:]]) + b"\n")
    assert [row["step"] for row in read_run(tmp_path).curves] == [1, 2, 3, 4, 5]
    cut_metrics(log, 4)
    assert log.read_bytes().splitlines() == rows[:4]


@pytest.mark.parametrize(
    "text",
    ["key,loss\na,1\n", "key,loss,identity\na,low,x\n", "key,loss,identity\na\n", "key,loss,identity\na,nan,x\n"]
    + ["key,loss,identity\n" + "a" * 200_000 + ",1,x\n", "key,loss,identity\na,1,x,9\n", 'key,loss,identity\n"a'],
)
def test_a_damaged_ranking_is_one_line_and_stays_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "rank.csv").write_text(text)
    with pytest.raises(NasError, match="rank.csv: damaged"):
        collect(tmp_path, [], lambda arrangement: 0.0, {})
    assert (tmp_path / "rank.csv").read_text() == text


# Terminals, pipes, children -----------------------------------------------------------------------------


def test_no_escape_of_a_stranger_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain("a\x1b[31mb\u202ec\x9bd\te\n\udcff") == "a\\x1b[31mb\\u202ec\\x9bd\te\n\\udcff"
    header = Header("board", "roofline", chip="\x1b]0;title\x07", notes="\x1b[2J", precision="fp32")
    Table(header, []).save(tmp_path / "board" / "roofline.csv")
    for words in (["table", "list"], ["table", "show", "board"], ["space", "show", "\x1b[31mred"]):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*words, *(["--dir", str(tmp_path)] if words[0] == "table" else [])])
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err and "\x07" not in out + err
    assert "\\x1b[31mred" in err  # what a person typed is shown as it is, harmless


def test_a_reader_who_leaves_is_no_error(tmp_path: Path) -> None:
    for words in (["space", "list"], ["--help"], ["table", "--help"], ["table", "list"], ["space", "nothing"]):
        read, write = os.pipe()
        os.close(read)
        code = f"from nas.cli import main; main({words!r})"
        done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert done.returncode == (2 if "nothing" in words else 0), done.stderr
        assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_children_never_run_modules_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from device_profiler.child import module_path, python_module

    for name in ("queue", "secrets", "json", "nas"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    command = python_module("nas.cli", "space", "list")
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": module_path()}, capture_output=True, text=True)
    assert done.returncode == 0 and "tiny" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()


def test_no_child_is_started_in_another_way() -> None:
    """Every ``python -m`` of the toolkit goes through ``python_module``."""
    root = Path(__file__).resolve().parents[1]
    for room in ("nas", "device_profiler", "search_spaces", "latency_tables"):
        for file in (root / room).rglob("*.py"):
            assert file.name == "child.py" or 'executable, "-m"' not in file.read_text(), file


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg://u:p@ss@host/d", "is written %40"),
        ("postgres://u:secret@host/d", r"Did you mean postgresql\+psycopg://"),
        ("mysql://u:secret@host/d", "pip install pymysql"),
        ("redis://:secret@host", "studies are not kept in 'redis'"),
        ("postgresql+none://u:secret@host/d", r"temporal-nas\[postgres\]"),
        ("postgresql+psycopg://u:secret", "must be the URL"),
    ],
)
def test_a_database_that_cannot_be_names_the_remedy_and_no_password(url: str, message: str) -> None:
    from nas.search.storage import shown

    with pytest.raises(NasError, match=message) as caught:
        shown(url)
    assert "secret" not in str(caught.value) and "p@ss" not in str(caught.value) and "ss@host" not in str(caught.value)
    assert "secret" not in shown("sqlite:///study.db?password=secret")


def test_a_prompt_that_is_no_text_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(tmp_path), "--prompt", "bars \udcff move", "--out", str(tmp_path / "x.mp4")])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1 and "half a character" in said[0]


def test_wrong_use_of_a_table_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["table", "costs"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1
    assert said[0].startswith("nas: ") and "nas table costs --help" in said[0]


def test_two_dashes_are_no_value_of_a_table_command(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse makes an empty list of them, whatever the option takes."""
    with pytest.raises(SystemExit) as stop:
        main(["table", "diff", "amd_epyc_zen5", "amd_epyc_zen5", "--threshold=--"])
    assert stop.value.code == 2 and "argument --threshold: -- is no value" in capsys.readouterr().err
