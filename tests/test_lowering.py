"""Lowering: artifacts, their cache, and failures that stay in the child."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from profiler_fakes import small

from device_profiler import subject as subject_module
from device_profiler.child import Child, classify
from device_profiler.errors import OutOfMemory, TimedOut, Unsupported, WorkloadError
from device_profiler.lowering import Lowered, artifact_name, default_lowerings, find, lower, lower_all, sample_error
from device_profiler.lowering.liveness import live_peak_bytes
from device_profiler.subject import Subject
from search_spaces import registry
from search_spaces.workload import Workload

ATTENTION = "SelfAttention3D(heads=2)/c8/t2/4x4/b1@fp32"


def test_an_onnx_artifact_states_weights_operations_and_expected_output(tmp_path: Path) -> None:
    lowered = lower(small(), "onnx", "plain", tmp_path)
    assert lowered.file.is_file() and lowered.stats["ops"]["Conv"] == 1
    assert lowered.stats["weights_mb"] == pytest.approx((8 * 8 * 9 + 8) * 4 / 1e6, rel=0.05)
    assert lowered.output_shape == (4, 8, 8, 8) and len(lowered.expected) > 500 and lowered.scale > 0
    assert lowered.stats["static_peak_mb"] >= 2 * 4 * 8 * 8 * 8 * 4 / 1e6
    assert lowered.subject == small()


def test_a_second_lowering_reads_the_cache(tmp_path: Path) -> None:
    first = lower(small(), "onnx", "plain", tmp_path)
    stamp = first.file.stat().st_mtime_ns
    assert find(small(), "onnx", "plain", tmp_path) == first
    assert lower(small(), "onnx", "plain", tmp_path).file.stat().st_mtime_ns == stamp
    assert not [folder for folder in tmp_path.iterdir() if folder.name.startswith(".")]


def test_another_shape_copy_or_lowering_is_another_artifact() -> None:
    names = {
        artifact_name(small(), "onnx", "plain"),
        artifact_name(small(channels=16), "onnx", "plain"),
        artifact_name(small().with_copies(2), "onnx", "plain"),
        artifact_name(small(), "onnx", "fused"),
        artifact_name(small(), "coreml", "plain"),
    }
    assert len(names) == 5


def test_a_changed_block_of_another_package_never_meets_an_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "other_blocks"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('fingerprints import nothing')")
    (package / "parts.py").write_text("SCALE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("Mine", "other_blocks.blocks:Mine", "temporal_nas.blocks")
    gone = EntryPoint("Gone", "absent_package:Gone", "temporal_nas.families")
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in (point, gone) if p.group == group])
    names = []
    for scale in (1, 2):
        (package / "parts.py").write_text(f"SCALE = {scale}\n")
        subject_module._sources.cache_clear()
        names.append(artifact_name(small(), "onnx", "plain"))
    subject_module._sources.cache_clear()
    assert names[0] != names[1]


@pytest.mark.parametrize("damage", ["{", "{}", None])
def test_a_half_written_artifact_is_made_anew(tmp_path: Path, damage: str | None) -> None:
    manifest = lower(small(), "module", "plain", tmp_path).folder / "lowered.json"
    manifest.unlink() if damage is None else manifest.write_text(damage)
    assert find(small(), "module", "plain", tmp_path) is None
    assert lower(small(), "module", "plain", tmp_path).output_shape == (4, 8, 8, 8)


def test_children_lower_many_and_a_crash_takes_nothing_else_down(tmp_path: Path) -> None:
    jobs = [small("build_broken"), small("build_deadly"), small(), small(channels=16)]
    found = dict(lower_all([(subject, "module", "plain") for subject in jobs], tmp_path, workers=1))
    assert isinstance(found[0], WorkloadError) and "cannot be built" in str(found[0])
    assert isinstance(found[1], OutOfMemory) and "SIGKILL" in str(found[1])
    assert isinstance(found[2], Lowered) and isinstance(found[3], Lowered)


def test_a_child_that_does_not_answer_is_stopped(tmp_path: Path) -> None:
    child = Child("device_profiler.lowering.worker")
    with pytest.raises(TimedOut, match="no answer to lower within 0.2 s"):
        child.call("lower", 0.2, subject=small().to_json(), toolkit="module", lowering="plain", cache=str(tmp_path))
    with pytest.raises(WorkloadError):
        child.call("lower", 0.2)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("bad_alloc"), "oom"),
        (RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer"), "oom"),
        (ValueError("Core ML only supports tensors with rank <= 5"), "unsupported"),
        (NotImplementedError("conv9d"), "unsupported"),
        (Unsupported("x"), "unsupported"),
        (RuntimeError("something else"), "failed"),
    ],
)
def test_what_libraries_throw_gets_a_status(error: Exception, status: str) -> None:
    assert classify(error) == status


def test_inputs_are_the_same_in_every_process(tmp_path: Path) -> None:
    first = lower(small(), "module", "plain", tmp_path)
    again = Lowered.read(first.folder)
    assert all(np.array_equal(a, b) for a, b in zip(first.arrays(), again.arrays(), strict=True))
    assert first.arrays()[0].std() == pytest.approx(1, abs=0.1)


def test_an_output_of_another_shape_or_not_finite_is_infinitely_wrong() -> None:
    right = np.arange(6, dtype=np.float32).reshape(2, 3)
    check = ((2, 3), (0, 5), (0.0, 5.0), 5.0)
    assert sample_error(right, *check) == 0
    assert sample_error(right + 1, *check) == pytest.approx(0.2)
    assert sample_error(right.T, *check) == float("inf")
    assert sample_error(np.where(right == 5, np.nan, right), *check) == float("inf")


def test_attention_has_a_fused_and_a_decomposed_form() -> None:
    attention = Workload.parse(ATTENTION)
    assert set(default_lowerings("onnx", attention)) == set(default_lowerings("coreml", attention))
    assert default_lowerings("onnx", Workload.parse("Conv1D(kernel_size=3)/c8/t2/4x4/b1@fp32"))[0] == "plain"


@pytest.mark.parametrize("lowering", ["decomposed", "fused"])
def test_both_forms_of_attention_are_exported(tmp_path: Path, lowering: str) -> None:
    lowered = lower(Subject(Workload.parse(ATTENTION)), "onnx", lowering, tmp_path)
    assert lowered.stats["attention_ops"] == (lowering == "fused")


def test_counting_knows_the_flops_of_a_convolution_and_the_scores_of_attention(tmp_path: Path) -> None:
    conv = lower(small(), "counts", "plain", tmp_path)
    assert conv.stats["flops"] == 2 * 4 * 64 * 8 * 8 * 9
    spelled = lower(Subject(Workload.parse(ATTENTION)), "counts", "decomposed", tmp_path)
    fused = lower(Subject(Workload.parse(ATTENTION)), "counts", "fused", tmp_path)
    assert fused.stats["flops"] == spelled.stats["flops"] > 0
    scores = 2 * 32 * 32 * 4 / 1e6
    assert spelled.stats["activation_peak_mb"] > fused.stats["activation_peak_mb"] + scores / 2


def test_a_tensor_lives_from_its_maker_to_its_last_reader() -> None:
    sizes = {"x": 10, "a": 100, "b": 50, "y": 10}
    steps = [(["x"], ["a"]), (["a"], ["b"]), (["b", "x"], ["y"])]
    assert live_peak_bytes(steps, sizes, ["x"], ["y"]) == 10 + 100 + 50
    assert live_peak_bytes([], sizes, ["x"], ["x"]) == 10
