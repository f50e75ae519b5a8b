"""Whatever a file or an option holds: an answer or one line, never a traceback, and nothing changed on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import files, json_bytes, texts, words, yaml_bytes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from search_problems import tiny_problem
from test_report import write_fake_run
from typer.main import get_command

from latency_tables.header import Header
from latency_tables.table import Table, table_path
from nas.cli import main
from nas.cli.options import app
from nas.config import resolve
from nas.errors import NasError
from nas.ranking.evidence import collect
from nas.training.log import cut_metrics
from search_spaces.planning import load_plan
from search_spaces.reading import parse_yaml
from search_spaces.space import SPACES, Space

MANY = 34  # times as many inputs with -m slow as in the suite


class Door:
    """A folder with one good file of every kind, and a way to run commands on it that shows what they change."""

    def __init__(self, folder: Path, capture: Callable[[], tuple[str, str]]) -> None:
        self.folder, self.capture = folder, capture
        self.space = parse_yaml((SPACES / "tiny.yaml").read_text())
        self.space["name"] = "mine"
        (folder / "mine.yaml").write_bytes(yaml_bytes(self.space))
        self.plan = load_plan(Space.load(folder / "mine.yaml")).to_json()
        self.device = {"name": "board", "runtime": "roofline", "compute_unit": "CPU", "precision": "fp32"}
        self.device |= {"roofline": {"peak_tflops": 1.0, "bandwidth_gb_s": 10.0, "source": "made up"}, "notes": "none"}
        (folder / "board.yaml").write_bytes(yaml_bytes(self.device))
        self.arrangement = load_plan(Space.load("tiny")).largest().to_json()
        (folder / "chosen.yaml").write_bytes(yaml_bytes(self.arrangement))
        self.config = resolve("tiny").model_dump(mode="json")
        self.run = write_fake_run(folder / "run", trials=8)
        shutil.rmtree(self.run / "table")
        (self.run / "config.yaml").write_bytes(yaml_bytes(self.config))
        evidence = {"mape": 0.01, "worst": 0.02, "kendall_tau": 1.0, "networks": 2, "space": "tiny"}
        evidence |= {"samples": [{"predicted_ms": 50.0, "measured_ms": 51.0, "layers": 3}] * 2}
        header = Header("host_cpu", "onnxruntime", precision="fp32", additivity=evidence, notes="made up")
        self.table = table_path(self.run / "table", "host_cpu", "onnxruntime")
        Table(header, tiny_problem().costs.rows.values()).save(self.table)
        (self.run / "rank.csv").write_text("key,loss,identity\nabc,0.5,x\n")

    def runs(self, *command: object) -> int:
        """Run one command; whatever it says, it is no traceback, and a refusal changes nothing."""
        before = files(self.folder)
        self.capture()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in command])
        code, (out, err) = stopped.value.code, self.capture()
        assert code in (0, 1, 2), (command, code, err)
        assert "Traceback" not in err and "\x1b" not in out + err, (command, err)
        after = files(self.folder)
        if code == 2:
            said = [line for line in err.splitlines() if line.startswith("nas: ") or ": error: " in line]
            assert len(said) == 1, (command, err)
            new = {name for name in after.keys() - before.keys() if not name.endswith(".plan.json")}
            assert not new, (command, new)
        assert {name: after.get(name) for name in before} == before or code != 2, command
        assert not (self.folder / "ran").exists() and not Path("ran").exists()
        return int(code)

    def with_file(self, path: Path, data: bytes, *command: object) -> int:
        """Run a command while ``path`` holds ``data``."""
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        try:
            return self.runs(*command)
        finally:
            path.unlink() if kept is None else path.write_bytes(kept)
            for plan in (*self.folder.glob("*.plan.json"), self.run / "report.html", self.folder / "page.html"):
                plan.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where it happens: the work of hours is not begun, and no model is looked for on a network."""
    folder = tmp_path_factory.mktemp("doors")

    def begun(*_: object, **__: object) -> None:
        raise NasError("everything was right, and the work would begin")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for name in (
            *(
                "nas.run.job.store",
                "nas.run.job.train_supernet",
                "nas.run.job.cache_latents",
                "nas.training.launch.launch",
            ),
            *("nas.run.costs.profile_space", "nas.run.costs.profile_operator", "nas.run.costs.audit_space"),
            *("nas.prune.prune_network", "device_profiler.fleet.serve", "nas.search.dashboard.make_server"),
            *("nas.model.build.build_anew", "nas.model.sample.sample_video"),
        ):
            patch.setattr(name, begun)
        yield folder


@pytest.fixture(scope="module")
def doors(place: Path) -> dict[str, Door]:
    return {}


@pytest.fixture()
def door(place: Path, doors: dict[str, Door], capsys: pytest.CaptureFixture[str]) -> Door:
    capture = lambda: tuple(capsys.readouterr())  # noqa: E731
    if "one" not in doors:
        doors["one"] = Door(place, capture)
    doors["one"].capture = capture  # type: ignore[assignment]
    return doors["one"]


# The kinds ---------------------------------------------------------------------------------------------


def a_space(door: Door, data: st.DataObject) -> None:
    text = data.draw(texts(door.space, yaml_bytes))
    path = door.folder / "mine.yaml"
    door.with_file(path, text, "space", data.draw(st.sampled_from(("show", "check"))), path)


def a_plan(door: Door, data: st.DataObject) -> None:
    text = data.draw(texts(door.plan, json_bytes))
    path = door.folder / "mine.plan.json"
    command = data.draw(st.sampled_from((("space", "show", door.folder / "mine.yaml"), ("table", "coverage", path))))
    door.with_file(path, text, *command, *(("--dir", door.run / "table") if command[0] == "table" else ()))


def a_device(door: Door, data: st.DataObject) -> None:
    from device_profiler.device import Device
    from device_profiler.errors import ProfileError

    text = data.draw(texts(door.device, yaml_bytes))
    try:
        device = Device.parse(text.decode(), origin="board.yaml")
    except (ProfileError, UnicodeDecodeError) as error:
        assert "\n" not in str(error)
    else:
        assert "/" not in device.name and device.name.isprintable()


def an_arrangement(door: Door, data: st.DataObject) -> None:
    from search_spaces.arrangement import Arrangement
    from search_spaces.errors import SpaceError

    text = data.draw(texts(door.arrangement, yaml_bytes))
    path = door.folder / "chosen.yaml"
    costs = ("table", "predict", "tiny", "--device", door.table, "--arrangement", path)
    door.with_file(path, text, *costs)
    other = door.folder / "other.yaml"
    other.write_bytes(text)
    try:
        Space.load("tiny").check(Arrangement.load(other))
    except SpaceError as error:
        assert "\n" not in str(error)
    finally:
        other.unlink()


def a_table(door: Door, data: st.DataObject) -> None:
    seals = data.draw(st.booleans())
    path = door.table if data.draw(st.booleans()) else door.table.with_suffix(".yaml")
    text = data.draw(texts(parse_yaml(door.table.with_suffix(".yaml").read_text()), yaml_bytes))
    if path == door.table:
        from fuzzing import damaged

        text = data.draw(damaged(path.read_bytes()))
    kept = {part: part.read_bytes() for part in (door.table, door.table.with_suffix(".yaml"))}
    try:
        path.write_bytes(text)
        if seals and door.runs("table", "seal", door.table) != 0:
            return
        ask = data.draw(st.sampled_from(("show", "validate", "report", "costs", "diff", "predict")))
        more: tuple[object, ...] = (door.table,)
        more = ("tiny", "--device", door.table) if ask in ("costs", "predict") else more
        more = (door.table, door.table) if ask == "diff" else more
        more = (door.table, "--out", door.folder / "page.html") if ask == "report" else more
        door.runs("table", ask, *more)
    finally:
        for part, whole in kept.items():
            part.write_bytes(whole)
        (door.folder / "page.html").unlink(missing_ok=True)


def a_config(door: Door, data: st.DataObject) -> None:
    part = data.draw(st.sampled_from(("data", "train", "quality", "search", "samples")))
    text = data.draw(texts({part: door.config[part], "seed": 0}, yaml_bytes))
    path = door.folder / "config.yaml"
    door.with_file(path, text, "train", "tiny", "--out", door.folder / "new", "--config", path)


def a_setting(door: Door, data: st.DataObject) -> None:
    from fuzzing import places

    keys = [".".join(map(str, path)) for path in places(door.config)[1:]]
    key = data.draw(st.one_of(st.sampled_from(keys), words))
    door.runs("train", "tiny", "--out", door.folder / "new", "--set", f"{key}={data.draw(words)}")


def a_run_config(door: Door, data: st.DataObject) -> None:
    text = data.draw(texts(door.config, yaml_bytes))
    door.with_file(door.run / "config.yaml", text, "search", door.run)


def _report(door: Door, name: str, text: bytes) -> None:
    assert door.with_file(door.run / name, text, "report", door.run) == 0


def a_report_piece(door: Door, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(("metrics.json", "explain.json", "samples/captions.json", "arrangement.yaml")))
    whole = (door.run / name).read_bytes()
    value = json.loads(whole) if name.endswith("json") else parse_yaml(whole.decode())
    _report(door, name, data.draw(texts(value, json_bytes if name.endswith("json") else yaml_bytes)))


def a_report_file(door: Door, data: st.DataObject) -> None:
    from fuzzing import damaged

    names = ("front.csv", "supernet/metrics.jsonl", "samples/samples.npz", "table/host_cpu/onnxruntime.yaml")
    name = data.draw(st.sampled_from(names))
    _report(door, name, data.draw(damaged((door.run / name).read_bytes())))


def a_log(door: Door, data: st.DataObject) -> None:
    from fuzzing import damaged

    path = door.folder / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss": 0.5}).encode() for step in range(1, 9)]
    index = data.draw(st.integers(0, 7))
    broken = data.draw(damaged(rows[index])).replace(b"\n", b" ")
    path.write_bytes(b"\n".join([*rows[:index], broken, *rows[index + 1 :]]) + b"\n")
    cut_metrics(path, 6)
    kept = path.read_bytes().splitlines()
    assert [row for row in kept if row in rows] == [row for i, row in enumerate(rows[:6]) if i != index or row in kept]
    path.unlink()


def a_ranking(door: Door, data: st.DataObject) -> None:
    from fuzzing import damaged

    whole = b'key,loss,identity\nabc,0.50000000,"{""a"": 1}"\ndef,0.25000000,other\n'
    folder = door.folder / "ranked"
    folder.mkdir(exist_ok=True)
    text = data.draw(damaged(whole))
    (folder / "rank.csv").write_bytes(text)
    try:
        collect(folder, [], lambda arrangement: 0.0, {})
    except NasError as error:
        assert "\n" not in str(error)
    assert (folder / "rank.csv").read_bytes() == text
    shutil.rmtree(folder)


def an_option(door: Door, data: st.DataObject) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    name = data.draw(st.sampled_from(sorted(set(commands) - {"table", "space", "worker", "dashboard"})))
    chosen: list[object] = [name]
    options = [
        p for p in commands[name].params if p.param_type_name == "option" and p.name not in ("help", "helper_of")
    ]
    for parameter in commands[name].params:
        if parameter.param_type_name == "argument":
            good = {"space": "tiny", "run": door.run, "source": door.folder / "none"}
            chosen.append(data.draw(words) if data.draw(st.integers(0, 5)) == 0 else good.get(parameter.name, "none"))
    needed = [p for p in options if p.required]
    for option in [
        *needed,
        *data.draw(st.lists(st.sampled_from(options), min_size=1, max_size=2) if options else st.just([])),
    ]:
        flag = option.opts[0]
        if option.is_flag:
            chosen.append(flag)
        elif option.name in ("out", "vbench_out", "table", "tables", "classifiers"):
            chosen += [flag, data.draw(st.sampled_from((door.folder / "new", door.folder, "/", "x" * 300, "a\0b")))]
        else:
            chosen += [flag, data.draw(words)]
    door.runs(*chosen)


def a_table_option(door: Door, data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(("costs", "predict", "diff", "report", "coverage", "transfer", "show")))
    table = door.table
    shapes: dict[str, list[object]] = {
        "costs": ["tiny", "--device", table],
        "predict": ["tiny", "--device", table],
        "diff": [table, table],
        "report": [table, "--out", door.folder / "page.html"],
        "coverage": ["tiny", table],
        "transfer": [table, table, "--out", door.folder / "moved.csv"],
        "show": [table],
    }
    limits = ["--latency-ms", "--memory-mb", "--parameters-min", "--parameters-max"]
    options = {"costs": limits, "predict": [*limits, "--layers", "--steps"], "diff": ["--threshold"]}
    options |= {"report": ["--threshold", "--since"], "transfer": ["--next"], "show": ["--match"]}
    chosen = shapes[command]
    if command in options and data.draw(st.booleans()):
        chosen = [*chosen, f"{data.draw(st.sampled_from(options[command]))}={data.draw(words)}"]
    else:
        index = data.draw(st.integers(0, len(chosen) - 1))
        chosen = [data.draw(words) if i == index and not str(c).endswith("html") else c for i, c in enumerate(chosen)]
    try:
        door.runs("table", command, *chosen)
    finally:
        for made in ("page.html", "moved.csv", "moved.yaml"):
            (door.folder / made).unlink(missing_ok=True)


# Inputs of each kind in the suite: fewer where one takes long. Together they are 600, and with -m slow 20,400.
KINDS = {
    **dict.fromkeys((a_space, a_report_piece, a_report_file), 20),
    **dict.fromkeys((a_plan, an_arrangement, a_table, a_config, a_run_config, a_table_option), 40),
    **dict.fromkeys((a_device, a_setting, a_log, a_ranking, an_option), 60),
}


def fuzz(kind: Callable[[Door, st.DataObject], None], door: Door, count: int) -> None:
    quick = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )

    @quick
    @given(data=st.data())
    def each(data: st.DataObject) -> None:
        kind(door, data)

    each()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_input_is_answered_or_refused_in_one_line(kind: Any, door: Door) -> None:
    fuzz(kind, door, KINDS[kind])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_thousands_of_inputs_are_answered_or_refused_in_one_line(kind: Any, door: Door) -> None:
    fuzz(kind, door, MANY * KINDS[kind])
