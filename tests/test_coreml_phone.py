"""The Core ML runtime over a stand-in phone: rows recover its hidden truth, and what is not ready is said so."""

from pathlib import Path

import pytest
from phone_standin import Behaviour, StandIn, artifacts, phones, run, runtime_of, stand_in, truth

from device_profiler import ProfileError, profile
from device_profiler.device import Device, Phone
from device_profiler.lowering import Lowered
from device_profiler.runtimes.coreml import CoreMLRuntime

__all__ = ["artifacts", "phones"]


def test_the_rows_recover_the_hidden_truth(phones: StandIn, artifacts: list[Lowered]) -> None:
    rows = run(phones, artifacts)
    for row, artifact in zip(rows, artifacts, strict=True):
        assert row.status == "ok", row.reason
        assert row.latency_ms_median == pytest.approx(truth(artifact), rel=0.02)
        assert (row.load_cold_ms, row.load_warm_ms) == (200, 10)
        assert (row.placement_ane, row.placement_cpu, row.placement_gpu) == (0.75, 0.25, 0)
        assert row.static_peak_mb and row.activation_peak_mb is None
    calls = (phones.phone() / "calls.log").read_text()
    assert calls.count("device process launch") == 1


def test_a_phone_that_lies_about_its_outputs_gets_no_number(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(lie=True))
    (row,) = run(phones, artifacts[:1])
    assert row.status == "wrong" and "no unit answers rightly" in row.reason and row.latency_ms_median is None


def test_two_phones_need_a_name_and_each_is_found_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: list[Lowered]
) -> None:
    desk = stand_in(tmp_path, monkeypatch, ("One", "Two"))
    with pytest.raises(ProfileError, match="several phones are attached: Phone One .* set phone.udid"):
        runtime_of(desk, []).check()
    with pytest.raises(ProfileError, match="no phone with udid 'UDID-Three'"):
        runtime_of(desk, [], udid="UDID-Three").check()
    one, two = (runtime_of(desk, artifacts[:1], udid=f"UDID-{name}") for name in ("One", "Two"))
    sessions = [runtime.load(artifacts[0], 8.0) for runtime in (one, two)]
    assert all(session.run(1, 8.0)[0].ms > 0 for session in sessions)
    for session, runtime in zip(sessions, (one, two), strict=True):
        session.close()
        runtime.close()
    assert desk.processes() == []


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (Behaviour(developer_mode="disabled"), "developer mode is off on Phone One; turn it on"),
        (Behaviour(tunnel="unavailable"), "attached but unavailable; unlock it"),
    ],
)
def test_a_phone_that_is_not_ready_is_said_so(phones: StandIn, behaviour: Behaviour, message: str) -> None:
    phones.behave(behaviour)
    with pytest.raises(ProfileError, match=message):
        runtime_of(phones, []).check()


def test_another_model_is_refused_and_the_right_one_stands_in_the_header(phones: StandIn) -> None:
    runtime = runtime_of(phones, [], model="iPhone17,2")
    runtime.check()
    details = profile._header(runtime.device, runtime, 0).details
    assert details is not None and details["model"] == "iPhone17,2"
    phones.behave(Behaviour(product_type="iPhone14,5", marketing_name="iPhone 13"))
    words = r"phone.model is iPhone17,2, and Phone One is iPhone14,5 \(iPhone 13\); attach the right phone, or write"
    with pytest.raises(ProfileError, match=words) as caught:
        runtime_of(phones, [], model="iPhone17,2").check()
    assert "\n" not in str(caught.value)
    other = runtime_of(phones, [])
    differs = profile._header(runtime.device, runtime, 0).conflicts(profile._header(other.device, other, 0))
    assert "model iPhone17,2 and iPhone14,5" in differs, "their rows do not mix even where no model is asked for"


def test_without_xcode_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProfileError, match="xcrun, which is not on the PATH; on a Mac install Xcode"):
        CoreMLRuntime(Device.load("iphone16_pro_max")).check()


def test_what_is_missing_of_app_or_phone_is_said_before_anything_is_lowered(
    phones: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Device(name="phone", runtime="coreml", compute_unit="CPU_AND_NE", precision="fp16")
    with pytest.raises(ProfileError, match="the app can be built on a Mac only; set phone.app_path"):
        CoreMLRuntime(bare).check()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ProfileError, match="no signing team; set phone.development_team"):
        CoreMLRuntime(bare).check()
    absent = bare.model_copy(update={"phone": Phone(app_path="/absent/ModelRunner.app")})
    with pytest.raises(ProfileError, match="phone.app_path /absent/ModelRunner.app does not exist; build it"):
        CoreMLRuntime(absent).check()
    (phones.phone() / "unplugged_until").write_text("9e12")
    with pytest.raises(ProfileError, match="no iPhone is attached"):
        CoreMLRuntime(bare).check()


def test_a_compute_unit_that_core_ml_lacks_is_refused() -> None:
    with pytest.raises(ProfileError, match="has no compute unit CUDA; it is one of ALL"):
        CoreMLRuntime(Device(name="phone", runtime="coreml", compute_unit="CUDA"))
