"""A row of a table: rounding, unknown against zero, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from table_fixtures import small_record

from latency_tables import COLUMNS, Record, TableError

KEY = "Conv3D(kernel_size=3)/c320/t30/64x64/b1@fp16"


def test_columns_are_the_contract():
    assert ",".join(COLUMNS) == (
        "key,lowering,method,block,params,channels,frames,height,width,batch,precision,source,status,reason,"
        "latency_ms_median,latency_ms_p90,latency_iqr_ratio,latency_low_ms,latency_high_ms,runs,load_cold_ms,"
        "load_warm_ms,weights_mb,activation_peak_mb,system_peak_mb,static_peak_mb,placement_cpu,placement_gpu,"
        "placement_ane,thermal,estimator"
    )


def test_a_record_equals_the_row_it_is_saved_as():
    record = small_record(KEY, 1.23456789, channels=320, weights_mb=1 / 3, extra=(("energy_mj", 2.5),))
    row = dict(zip((*COLUMNS, "energy_mj"), record.to_row(("energy_mj",)), strict=True))
    assert Record.from_row(row) == record
    assert row["latency_ms_median"] == "1.23457"
    assert row["weights_mb"] == "0.333333"


def test_unknown_is_empty_and_zero_is_a_number():
    record = small_record(KEY, activation_peak_mb=None, placement_ane=0.0)
    row = dict(zip(COLUMNS, record.to_row(), strict=True))
    assert (row["activation_peak_mb"], row["placement_ane"]) == ("", "0.0000")
    back = Record.from_row(row)
    assert back.activation_peak_mb is None and back.placement_ane == 0.0


def test_precision_comes_from_the_key_and_numpy_numbers_are_numbers():
    record = small_record(KEY, np.float32(2.0), runs=np.int64(7))
    assert record.precision == "fp16" and type(record.runs) is int and type(record.latency_ms_median) is float


def test_text_stays_on_one_line():
    failed = small_record(KEY, None, status="failed", reason="line one\nline\ttwo \x00 \ud800 end ")
    assert failed.reason == "line one line two end"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latency_ms_median": None}, "status ok needs latency_ms_median"),
        ({"latency_ms_median": 0.0}, "over 0 ms"),
        ({"latency_ms_median": float("nan")}, "finite"),
        ({"latency_ms_median": -1.0}, "finite number >= 0"),
        ({"latency_ms_median": "1.0"}, "must be a number"),
        ({"weights_mb": True}, "must be a number"),
        ({"channels": 1.5}, "whole number"),
        ({"status": "fine"}, "use one of ok, oom"),
        ({"source": "guessed"}, "use one of measured"),
        ({"method": "sum"}, "use one of alone"),
        ({"precision": "fp32"}, "the key says 'fp16'"),
        ({"key": "Conv3D"}, "names no precision"),
        ({"key": ""}, "without a key"),
        ({"lowering": ""}, "lowering is empty"),
        ({"placement_ane": 1.2}, "0..1"),
        ({"latency_low_ms": 2.0, "latency_high_ms": 1.0}, "is over latency_high_ms"),
        ({"extra": (("Energy!", 1.0),)}, "extra column"),
        ({"extra": (("weights_mb", 1.0),)}, "extra column"),
        ({"params": 3}, "must be text"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value_and_the_remedy(changes, words):
    with pytest.raises(TableError, match=words) as error:
        small_record(**{"key": KEY, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["nan", "inf", "1_000", " 1", "1,5", "0x10", "１", "1e999"])
def test_cells_that_python_would_read_are_still_no_numbers(text):
    row = dict(zip(COLUMNS, small_record(KEY).to_row(), strict=True))
    with pytest.raises(TableError, match="latency_ms_p90"):
        Record.from_row({**row, "latency_ms_p90": text})
