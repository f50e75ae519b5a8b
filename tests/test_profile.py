"""Profiling a space: only what is missing, row by row, whatever stops it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from profiler_fakes import DEVICE, ERRORS, Script, ScriptedRuntime

from device_profiler import ProfileError, additivity
from device_profiler import profile as profile_module
from device_profiler.additivity import LIMITS, audit_table, check_additivity, random_networks
from device_profiler.admission import admit, predicted_peak_mb
from device_profiler.device import Device
from device_profiler.errors import OutOfMemory
from device_profiler.lowering import default_lowerings, lower
from device_profiler.measure import Progress
from device_profiler.profile import measure_workloads, operator_workload, profile, profile_operator, wanted_rows
from device_profiler.samples import Limits, RunLog
from device_profiler.subject import Subject, reference_subject
from latency_tables.cost import CostModel
from latency_tables.record import Record
from latency_tables.reference import References
from latency_tables.table import Table, table_path
from search_spaces.plan import Plan
from search_spaces.space import Space
from search_spaces.workload import Workload

QUICK = Limits(warmup=1, min_rounds=2, max_rounds=2, visit_ms=1.0, max_repeats=2)
ROOFLINE = "iphone16_pro_max_roofline"
CONV3D = ("Conv3D", "16x4x8x8")
OPERATORS = (CONV3D, ("Conv1D", "8x4x8x8"), ("Conv1D", "16x4x8x8"), ("Conv1D", "24x4x8x8"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is measured here, lowered in this process: a child that imports torch first takes seconds."""
    folder, space = tmp_path_factory.mktemp("cache"), Space.load("tiny")
    for precision, names in (("fp16", "counts"), ("fp32", "onnx")):  # the scripted runtime counts in ONNX's place
        for workload in (*space.workloads(precision), *space.ends(precision)):
            origin = "tiny" if workload.block == "backbone" else ""
            lower(Subject(workload, origin), "counts", default_lowerings(names, workload)[0], folder)
    lower(reference_subject("fp32"), "counts", "plain", folder)
    for block, shape in OPERATORS:
        lower(Subject(operator_workload(block, shape, "fp32")), "onnx", "plain", folder)
    lower(reference_subject("fp32"), "onnx", "plain", folder)
    return folder


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, Table]:
    folder = tmp_path_factory.mktemp("tables")
    return folder, profile("tiny", ROOFLINE, folder, cache_dir=cache)


def test_an_estimated_table_covers_the_space_and_says_so(estimated: tuple[Path, Table]) -> None:
    _, table = estimated
    space = Space.load("tiny")
    assert {row.key for row in table} == {w.key for w in (*space.workloads("fp16"), *space.ends("fp16"))}
    assert {row.source for row in table} == {"estimated"} and all(row.estimator and row.ok for row in table)
    assert "Apple" in table.header.notes
    model = CostModel(Plan.load("tiny"), table)
    assert model.source == "estimated"


def test_the_same_estimate_comes_out_of_every_run(estimated: tuple[Path, Table], tmp_path: Path, cache: Path) -> None:
    again = profile("tiny", ROOFLINE, tmp_path, cache_dir=cache)
    assert again.to_csv() == estimated[1].to_csv()


def test_with_nothing_to_do_only_space_and_table_are_read(estimated: tuple[Path, Table]) -> None:
    code = (
        "import sys\n"
        "from device_profiler.profile import profile\n"
        f"table = profile('tiny', '{ROOFLINE}', sys.argv[1])\n"
        "assert len(table) == 12, len(table)\n"
        "assert not {'torch', 'onnxruntime', 'coremltools', 'device_profiler.lowering.worker'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(estimated[0])], check=True, env=_environment())


def test_only_missing_rows_are_measured(estimated: tuple[Path, Table], tmp_path: Path, cache: Path) -> None:
    _, full = estimated
    path = table_path(tmp_path, ROOFLINE, "roofline")
    kept = [row for row in full if row.block != "Conv3D"]
    Table(full.header, kept).save(path)
    events: list[Progress] = []
    table = profile("tiny", ROOFLINE, tmp_path, cache_dir=cache, progress=events.append)
    assert table.to_csv() == full.to_csv()
    assert {event.key.split("(")[0] for event in events if event.stage == "load"} == {"Conv3D"}


def test_an_estimate_does_not_stand_for_a_measurement(estimated: tuple[Path, Table]) -> None:
    _, table = estimated
    space, device = Space.load("tiny"), profile_module.Device.load(ROOFLINE)
    wanted = profile_module.wanted_rows(space.workloads("fp16"), device)
    assert not profile_module.missing_rows(table, wanted, source="estimated")
    assert len(profile_module.missing_rows(table, wanted)) == len(wanted)


def test_failed_rows_are_results_until_a_retry_is_asked_for(
    estimated: tuple[Path, Table], tmp_path: Path, cache: Path
) -> None:
    _, full = estimated
    path = table_path(tmp_path, ROOFLINE, "roofline")
    rows = [replace(r, status="failed", latency_ms_median=None) if r.block == "Conv1D" else r for r in full]
    Table(full.header, rows).save(path)
    kept = profile("tiny", ROOFLINE, tmp_path, cache_dir=cache)
    assert {r.status for r in kept if r.block == "Conv1D"} == {"failed"}
    again = profile("tiny", ROOFLINE, tmp_path, cache_dir=cache, retry=True)
    assert all(row.ok for row in again)


@pytest.fixture()
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRuntime]:
    """profile() on a runtime whose latencies are known, with artifacts from the counting toolkit."""
    runtime = ScriptedRuntime({}, toolkit="counts")
    monkeypatch.setattr(profile_module, "_open", lambda device: runtime)
    yield runtime


def test_a_run_stopped_in_the_middle_keeps_its_rows_and_goes_on(
    scripted: ScriptedRuntime, tmp_path: Path, cache: Path
) -> None:
    scripted.scripts["Conv3D"] = Script(load_error=KeyboardInterrupt())  # type: ignore[arg-type]
    limits = replace(QUICK, group_size=1)
    with pytest.raises(KeyboardInterrupt):
        profile("tiny", DEVICE, tmp_path, cache_dir=cache, limits=limits)
    path = table_path(tmp_path, "fake", "onnxruntime")
    before = len(Table.load(path))
    assert 0 < before < 12
    scripted.scripts.clear()
    scripted.loads.clear()
    assert len(profile("tiny", DEVICE, tmp_path, cache_dir=cache, limits=limits)) == 12
    assert len([name for name in scripted.loads if name != "Reference"]) == 12 - before


def test_every_kind_of_failure_is_a_row_with_its_reason(scripted: ScriptedRuntime, tmp_path: Path, cache: Path) -> None:
    blocks = ("Conv1D", "Conv3D", "CrossAttention1D", "SelfAttention1D")
    for block, error in zip(blocks, ERRORS.values(), strict=True):
        scripted.scripts[block] = Script(load_error=error)
    table = profile("tiny", DEVICE, tmp_path, cache_dir=cache, limits=QUICK)
    found = {row.block: (row.status, row.reason) for row in table}
    for block, (status, error) in zip(blocks, ERRORS.items(), strict=True):
        assert found[block] == (status, str(error))
    assert found["backbone"][0] == "ok" and len(table) == 12
    assert table.header.reference is not None and table.header.reference["seed"] == 0


def test_unstable_rows_are_measured_again(scripted: ScriptedRuntime, tmp_path: Path, cache: Path) -> None:
    scripted.scripts["Conv3D"] = Script(noise=20.0)
    strict = replace(QUICK, min_rounds=8, max_rounds=8, gross_iqr_ratio=0.3)
    table = profile("tiny", DEVICE, tmp_path, cache_dir=cache, limits=strict)
    assert {r.status for r in table if r.block == "Conv3D"} == {"unstable"}
    scripted.scripts.clear()
    assert all(row.ok for row in profile("tiny", DEVICE, tmp_path, cache_dir=cache, limits=QUICK))


def test_a_table_of_another_runtime_version_is_not_mixed_with(
    estimated: tuple[Path, Table], tmp_path: Path, cache: Path
) -> None:
    _, full = estimated
    header = replace(full.header, runtime_version="0.1")
    Table(header, list(full)[1:]).save(table_path(tmp_path, ROOFLINE, "roofline"))
    with pytest.raises(ProfileError, match="measured with another runtime_version 0.1"):
        profile("tiny", ROOFLINE, tmp_path, cache_dir=cache)


def test_a_table_of_other_settings_is_not_mixed_with(scripted: ScriptedRuntime, tmp_path: Path, cache: Path) -> None:
    about = {"runtime_version": "1", "provider": "CPUExecutionProvider"}
    scripted.describe = lambda: about  # type: ignore[method-assign]
    profile_operator(*OPERATORS[1], DEVICE, tmp_path, cache_dir=cache, limits=QUICK)
    threads = DEVICE.model_copy(update={"threads": 4})
    with pytest.raises(ProfileError, match="another threads 1 and 4; give another table directory, or move") as caught:
        profile_operator(*OPERATORS[2], threads, tmp_path, cache_dir=cache, limits=QUICK)
    assert "\n" not in str(caught.value)
    about["provider"] = "XnnpackExecutionProvider"
    with pytest.raises(ProfileError, match="another provider CPUExecutionProvider and XnnpackExecutionProvider"):
        profile_operator(*OPERATORS[2], DEVICE, tmp_path, cache_dir=cache, limits=QUICK)


def test_every_ceiling_of_a_roofline_is_part_of_its_table(tmp_path: Path, cache: Path) -> None:
    device = Device.load(ROOFLINE)
    profile_operator(*CONV3D, device, tmp_path, cache_dir=cache)
    assert device.roofline is not None
    slower = device.model_copy(update={"roofline": device.roofline.model_copy(update={"overhead_us": 5.0})})
    with pytest.raises(ProfileError, match="another overhead_us 2.0 and 5.0"):
        profile_operator(*OPERATORS[1], slower, tmp_path, cache_dir=cache)


def test_a_header_without_settings_is_gone_on_with_and_then_has_them(
    estimated: tuple[Path, Table], tmp_path: Path, cache: Path
) -> None:
    _, full = estimated
    bare = replace(full.header, details=None, toolkit_version="torch 2.0", notes="by hand")
    Table(bare, list(full)[1:]).save(table_path(tmp_path, ROOFLINE, "roofline"))
    header = profile("tiny", ROOFLINE, tmp_path, cache_dir=cache).header
    assert header.details == full.header.details and header.details is not None
    assert header.details["overhead_us"] == 2.0
    assert header.toolkit_version == f"torch 2.0, {full.header.toolkit_version}", "rows of both are in it"
    assert header.notes == f"by hand {full.header.notes}"


def test_killed_in_the_middle_it_leaves_a_whole_table_and_no_process(tmp_path: Path, cache: Path) -> None:
    code = (
        "import sys\nfrom device_profiler.profile import profile_operator\n"
        "from device_profiler.measure import Limits\n"
        "limits = Limits(warmup=1, min_rounds=1, max_rounds=1, visit_ms=1.0, max_repeats=1, group_size=1)\n"
        "say = lambda e: print(e.stage, flush=True)\n"
        "for channels in (8, 16, 24):\n"
        "    profile_operator('Conv1D', f'{channels}x4x8x8', 'host_cpu', sys.argv[1], cache_dir=sys.argv[2],"
        " limits=limits, progress=say)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment(), start_new_session=True)
    assert process.stdout is not None
    rows = 0
    for line in process.stdout:
        rows += line.strip() == "row"
        if rows == 1 and line.strip() == "load":
            break
    children = _children(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    table = Table.load(table_path(tmp_path, "host_cpu", "onnxruntime"))
    assert len(table) >= 1 and all(row.ok for row in table)
    while any(_alive(pid) for pid in children):  # they end by themselves, or this never does
        time.sleep(0.05)
    subprocess.run(command, check=True, env=_environment(), stdout=subprocess.DEVNULL)
    assert len(Table.load(table_path(tmp_path, "host_cpu", "onnxruntime"))) == 3


def test_one_operator_at_any_shape(tmp_path: Path, cache: Path) -> None:
    table, workload = profile_operator(*CONV3D, "host_cpu", tmp_path, cache_dir=cache, limits=QUICK)
    record = table.get(workload.key)
    assert record is not None and record.ok and record.latency_ms_median and record.activation_peak_mb
    assert workload.key == "Conv3D(kernel_size=3)/c16/t4/8x8/b1@fp32"


def test_whole_networks_are_measured_like_blocks(tmp_path: Path, cache: Path) -> None:
    space = Space.load("tiny")
    (arrangement,) = random_networks(space, 1, seed=3)
    workload = space.network_workload(arrangement, "fp16")
    lower(Subject(workload, "tiny", arrangement), "counts", "fused", cache)
    (record,) = measure_workloads(
        [workload], ROOFLINE, space="tiny", arrangements={arrangement.key: arrangement}, cache_dir=cache
    )
    assert record.key == workload.key and record.ok
    with pytest.raises(ProfileError, match="needs its arrangement"):
        measure_workloads([workload], ROOFLINE, space="tiny", cache_dir=cache)


@pytest.fixture()
def together(monkeypatch: pytest.MonkeyPatch, scripted: ScriptedRuntime) -> dict[str, object]:
    """Whole networks and parts without lowering them: ``oom`` says how many networks do not fit; notes the limits."""
    how: dict[str, object] = {"oom": 0}

    def measure(workloads: list[Workload], device: Device, **given: object) -> list[Record]:
        how["limits"] = given["limits"]
        log = given["log"]
        if isinstance(log, RunLog) and "reference" in how:
            log.reference_key, log.reference = "reference", [(0, 2.5), (1, 2.5)]
        rows, networks = [], 0
        for n, workload in enumerate(workloads):
            networks += workload.block == "network"
            failed = workload.block == "network" and networks <= int(str(how["oom"]))
            facts = {"status": "oom", "reason": "too big"} if failed else {"latency_ms_median": 1.0 + n}
            memory = {} if failed else {"weights_mb": 1.0, "activation_peak_mb": 1.0}
            lowering = default_lowerings("onnx", workload)[0]  # as the device has it
            rows.append(Record(workload.key, lowering, precision="fp32", **facts, **memory))  # type: ignore[arg-type]
        return rows

    monkeypatch.setattr(additivity, "measure_workloads", measure)
    return how


def test_whole_networks_wait_as_long_as_their_device_says(
    together: dict[str, object], tmp_path: Path, cache: Path
) -> None:
    phone = DEVICE.model_copy(update={"timeout_s": 600.0, "cool_down_s": 30.0})
    check_additivity("tiny", phone, cache_dir=cache, networks=3)
    assert together["limits"] == replace(LIMITS, timeout_s=600.0, cool_down_s=30.0)
    check_additivity("tiny", phone, cache_dir=cache, networks=3, limits=QUICK)
    assert together["limits"] == QUICK


def test_fewer_networks_than_a_correction_needs_are_evidence_all_the_same(
    together: dict[str, object], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = random_networks(Space.load("tiny"), 3, seed=0)
    monkeypatch.setattr(additivity, "random_networks", lambda space, count, seed: drawn)
    audit_table("tiny", DEVICE, tmp_path, networks=20, cache_dir=cache)
    header = Table.load(table_path(tmp_path, "fake", "onnxruntime")).header
    assert header.additivity is not None and header.additivity["networks"] == 3 and header.correction is None
    assert "reference_spread" not in header.additivity, "no reference ran beside them: how quiet it was is unknown"


def test_a_network_that_fails_is_named_and_the_others_count(
    together: dict[str, object], tmp_path: Path, cache: Path
) -> None:
    together["oom"] = 1
    found, table = audit_table("tiny", DEVICE, tmp_path, networks=9, cache_dir=cache)
    assert len(found.rows) == 8 and table.header.correction is not None
    assert [text.partition(": ")[2] for text in found.evidence()["failed"]] == ["oom: too big"]
    model = CostModel(Plan.load("tiny"), Table.load(table_path(tmp_path, "fake", "onnxruntime")))
    assert model.correction is not None, "evidence and correction state the rows that were summed"


def test_when_no_network_has_a_number_the_measured_rows_are_kept(
    together: dict[str, object], tmp_path: Path, cache: Path
) -> None:
    together.update(oom=3, reference=True)
    with pytest.raises(ProfileError, match="none of 3 networks has a number; .*: oom: too big; measure with other"):
        audit_table("tiny", DEVICE, tmp_path, networks=3, cache_dir=cache)
    table = Table.load(table_path(tmp_path, "fake", "onnxruntime"))
    latencies = {row.latency_ms_median for row in table.rows("Conv1D(kernel_size=3)/c16/t8/48x48/b1@fp32")}
    assert latencies & {float(n) for n in range(1, 20)} and table.header.additivity is None
    measured = next(row for row in table if row.latency_ms_median in latencies)
    assert References(table.header)(measured.primary_key)["latency_ms"] == 2.5


def test_networks_of_other_settings_do_not_take_a_tables_place(
    together: dict[str, object], tmp_path: Path, cache: Path
) -> None:
    audit_table("tiny", DEVICE, tmp_path, networks=3, cache_dir=cache)
    with pytest.raises(ProfileError, match="another threads 1 and 4"):
        audit_table("tiny", DEVICE.model_copy(update={"threads": 4}), tmp_path, networks=3, cache_dir=cache)


@pytest.mark.parametrize(
    ("block", "shape", "context", "message"),
    [
        ("Conv3D", "320x30x64", "", "shape '320x30x64' cannot be read; write CxTxHxW"),
        ("Conv3D", "320x30x64xy", "", "cannot be read"),
        ("Conv3D", "320x30x64x64", "77x768", "reads no text"),
        ("CrossAttention1D", "32x4x8x8", "77", "context '77' cannot be read"),
        ("Conv4D", "32x4x8x8", "", "Conv4D"),
    ],
)
def test_an_operator_that_cannot_be_read_is_said_so(block: str, shape: str, context: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        operator_workload(block, shape, "fp32", context)
    assert "\n" not in str(caught.value)


def test_a_workload_that_cannot_fit_is_refused_with_the_figure() -> None:
    device = Device.load(ROOFLINE)
    workload = Workload.parse("SelfAttention3D(heads=8)/c640/t30/32x32/b1@fp16")
    with pytest.raises(OutOfMemory, match="1.9 GB for one fp16 score matrix per head .*, over the device's 1.8 GB"):
        admit(workload, "decomposed", device)
    admit(workload, "fused", device)
    assert predicted_peak_mb(workload, "decomposed") > 8 * 1887


def test_unknown_lowerings_and_methods_are_refused() -> None:
    device, workloads = Device.load("host_cpu"), Space.load("tiny").workloads("fp32")
    with pytest.raises(ProfileError, match=r"unknown lowering 'fuse'. Did you mean 'fused'\?"):
        wanted_rows(workloads, device, ["fuse"])
    with pytest.raises(ProfileError, match="unknown method"):
        wanted_rows(workloads, device, (), "sideways")
    both = wanted_rows(workloads, device, ["fused", "decomposed"])
    assert len(both) > len(workloads) and {row.lowering for row in both} == {"plain", "fused", "decomposed"}
    assert all(row.method == "alone" for row in wanted_rows(workloads[:1], device, (), "slope"))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(entry.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
