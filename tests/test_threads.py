"""Threads share a busy machine, except where the user has said otherwise and where time is taken."""

from __future__ import annotations

import os

import pytest

from device_profiler.child import Child
from device_profiler.threads import OURS, SHARED, as_given, share_cores


def test_what_nobody_has_said_is_set():
    environment = {"HOME": "/home/ada"}
    share_cores(environment)
    assert {name: environment[name] for name in SHARED} == SHARED


@pytest.mark.parametrize("said", [{"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "passive"}])
def test_a_user_who_says_how_threads_wait_is_left_alone(said):
    environment = dict(said)
    share_cores(environment)
    assert environment.get("GOMP_SPINCOUNT") == said.get("GOMP_SPINCOUNT")
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    assert as_given(environment) == said


def test_saying_it_twice_changes_nothing():
    environment: dict[str, str] = {}
    share_cores(environment)
    once = dict(environment)
    share_cores(environment)
    assert environment == once
    assert as_given(environment) == {}


def test_a_timed_process_runs_as_the_users_own(monkeypatch):
    for name in (OURS, *SHARED):
        monkeypatch.delenv(name, raising=False)
    share_cores()
    child = Child("environment_child", threads=3)
    try:
        environment = child.call("environment", 60.0)
    finally:
        child.close()
    assert environment.get("GOMP_SPINCOUNT") is None
    assert environment["OPENBLAS_NUM_THREADS"] == "3"
    assert os.environ["GOMP_SPINCOUNT"] == SHARED["GOMP_SPINCOUNT"]
