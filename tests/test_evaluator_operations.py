"""Operations of the evaluator against Apple's own definitions: what coremltools infers from constants, and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluator_packages import converted
from torch import nn

from device_profiler.evaluator.check import check_package
from device_profiler.evaluator.operations import OPERATIONS, Arguments
from device_profiler.quiet import quiet

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
Y = RNG.standard_normal((2, 3, 4)).astype(np.float32)
MAP = RNG.standard_normal((1, 4, 3, 5)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.1)
HEADS = RNG.standard_normal((1, 2, 5, 4)).astype(np.float32)
WHOLE = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
TRUTH = X > 0

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"x": X, "y": Y}) for name in ("add", "sub", "mul", "real_div", "maximum", "minimum")),
    *((name, {"x": X, "y": Y}) for name in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")),
    *((name, {"x": WHOLE, "y": np.int32(3)}) for name in ("add", "floor_div", "mod")),
    ("pow", {"x": POSITIVE, "y": np.float32(1.5)}),
    *((name, {"x": TRUTH, "y": ~TRUTH}) for name in ("logical_and", "logical_or", "logical_xor")),
    *((name, {"x": X}) for name in ("abs", "ceil", "cos", "erf", "exp", "exp2", "floor", "round", "sign", "sin")),
    *((name, {"x": X}) for name in ("square", "tan", "tanh", "sinh", "cosh", "atan", "sigmoid", "relu", "relu6")),
    *((name, {"x": X}) for name in ("softplus", "softsign")),
    ("logical_not", {"x": TRUTH}),
    *((name, {"x": POSITIVE}) for name in ("sqrt", "log")),
    *((name, {"x": POSITIVE, "epsilon": np.float32(0.01)}) for name in ("rsqrt", "inverse", "log")),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.5)}),
    ("leaky_relu", {"x": X, "alpha": np.float32(0.2)}),
    ("elu", {"x": X, "alpha": np.float32(0.7)}),
    *(("gelu", {"x": X, "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    ("softmax", {"x": X, "axis": np.int32(1)}),
    *(
        (f"reduce_{name}", {"x": X, "axes": np.array([0, -1], np.int32), "keep_dims": keep})
        for name in ("mean", "sum", "max", "min", "sum_square", "l1_norm", "l2_norm")
        for keep in (True, False)
    ),
    ("reduce_argmax", {"x": X, "axis": np.int32(1), "keep_dims": False}),
    ("select", {"cond": TRUTH, "a": X, "b": Y}),
    ("cast", {"x": X * 10, "dtype": "int32"}),
    ("cast", {"x": X, "dtype": "fp16"}),
    ("cumsum", {"x": X, "axis": np.int32(1)}),
    ("reshape", {"x": X, "shape": np.array([0, -1, 2], np.int32)}),
    ("transpose", {"x": X, "perm": np.array([2, 0, 1], np.int32)}),
    ("expand_dims", {"x": X, "axes": np.array([0, -1], np.int32)}),
    ("squeeze", {"x": X[:1], "axes": np.array([0], np.int32)}),
    ("concat", {"values": (X, Y), "axis": np.int32(1)}),
    ("stack", {"values": (X, Y), "axis": np.int32(1)}),
    ("split", {"x": X, "split_sizes": np.array([1, 3], np.int32), "axis": np.int32(2)}),
    ("split", {"x": X, "num_splits": np.int32(2), "axis": np.int32(2)}),
    ("tile", {"x": X, "reps": np.array([1, 2, 3], np.int32)}),
    ("reverse", {"x": X, "axes": np.array([0, 2], np.int32)}),
    (
        "slice_by_index",
        {
            **{"x": X, "begin": np.array([1, 0, 3], np.int32), "end": np.array([2, -1, 0], np.int32)},
            **{"stride": np.array([1, 1, -1], np.int32), "begin_mask": np.array([False, True, False])},
            **{"end_mask": np.array([False, False, True]), "squeeze_mask": np.array([True, False, False])},
        },
    ),
    ("slice_by_size", {"x": X, "begin": np.array([0, 1, 1], np.int32), "size": np.array([-1, 2, 2], np.int32)}),
    ("gather", {"x": X, "indices": np.array([[2, 0], [-1, 1]], np.int32), "axis": np.int32(1)}),
    ("gather_along_axis", {"x": X, "indices": WHOLE % 3, "axis": np.int32(1)}),
    ("fill", {"shape": np.array([2, 2], np.int32), "value": np.float32(1.5)}),
    ("shape", {"x": X}),
    ("range_1d", {"start": np.int32(1), "end": np.int32(9), "step": np.int32(3)}),
    ("band_part", {"x": X, "lower": np.int32(1), "upper": np.int32(0)}),
    ("band_part", {"x": X, "lower": np.int32(-1), "upper": np.int32(1)}),
    ("pad", {"x": X, "pad": np.array([0, 1, 2, 0], np.int32), "constant_val": np.float32(7)}),
    ("pad", {"x": X, "pad": np.array([1, 2], np.int32), "mode": "reflect"}),
    ("pad", {"x": X, "pad": np.array([1, 2, 2, 1], np.int32), "mode": "replicate"}),
    ("linear", {"x": X, "weight": Y[0, :2], "bias": Y[0, 0, :2]}),
    ("matmul", {"x": X, "y": Y, "transpose_x": False, "transpose_y": True}),
    ("layer_norm", {"x": X, "axes": np.array([-1], np.int32), "gamma": Y[0, 0], "beta": Y[0, 1]}),
    ("layer_norm", {"x": X, "axes": np.array([1, 2], np.int32), "epsilon": np.float32(0.1)}),
    ("l2_norm", {"x": MAP}),
    ("scaled_dot_product_attention", {"query": HEADS, "key": HEADS[..., ::-1], "value": HEADS}),
]


def ours(name: str, given: dict[str, Any], declared: torch.dtype) -> list[np.ndarray[Any, Any]]:
    tensors = {
        key: [
            v if isinstance(v, str) else torch.from_numpy(np.array(v))
            for v in (value if isinstance(value, tuple) else (value,))
        ]
        for key, value in given.items()
    }
    result = OPERATIONS[name](Arguments(tensors, declared))
    return [one.numpy() for one in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize(("name", "given"), CASES, ids=[f"{place}-{name}" for place, (name, _) in enumerate(CASES)])
def test_an_operation_is_what_apples_definition_says(name: str, given: dict[str, Any]) -> None:
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb

        found: list[Any] = []

        @mb.program(input_specs=[], opset_version=ct.target.iOS18)
        def program() -> Any:
            result = getattr(mb, name)(**given)
            found.extend(result if isinstance(result, (list, tuple)) else [result])
            return found[0]

    expected = [np.asarray(one.val) for one in found]
    assert all(one.dtype != object for one in expected), "coremltools infers no value"
    got = ours(name, given, torch.from_numpy(np.array(expected[0])).dtype)
    assert [one.shape for one in got] == [one.shape for one in expected]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_what_coremltools_infers_no_values_of() -> None:
    at = np.array([[0, 2], [1, 1]], np.int32)
    np.testing.assert_array_equal(ours("gather_nd", {"x": X, "indices": at}, torch.float32)[0], X[[0, 1], [2, 1]])
    filled = ours("fill_like", {"ref_tensor": X, "value": np.float32(2)}, torch.float32)[0]
    np.testing.assert_array_equal(filled, np.full_like(X, 2))
    product = ours("einsum", {"values": (X, Y), "equation": "bij,bkj->bik"}, torch.float32)[0]
    np.testing.assert_allclose(product, np.einsum("bij,bkj->bik", X, Y), rtol=1e-5)


BYTES = RNG.integers(-128, 127, (4, 6)).astype(np.int8)
SCALES = RNG.random((4, 1)).astype(np.float16)
PACKED = RNG.integers(0, 255, 12).astype(np.uint8)

STORED: list[tuple[str, str, dict[str, Any]]] = [
    ("iOS18", "constexpr_blockwise_shift_scale", {"data": BYTES, "scale": SCALES}),
    (
        *("iOS18", "constexpr_blockwise_shift_scale"),
        {"data": BYTES, "scale": np.tile(SCALES, 3), "offset": np.full((4, 3), 5, np.int8)},
    ),
    (
        *("iOS16", "constexpr_affine_dequantize"),
        {"quantized_data": BYTES, "scale": SCALES[:, 0], "zero_point": np.int8(3), "axis": np.int32(0)},
    ),
    (
        *("iOS16", "constexpr_lut_to_dense"),
        {"indices": PACKED, "lut": RNG.random(16).astype(np.float16), "shape": np.array([4, 6], np.uint32)},
    ),
    (
        *("iOS16", "constexpr_lut_to_dense"),
        {"indices": PACKED[:9], "lut": RNG.random(64).astype(np.float16), "shape": np.array([3, 4], np.uint32)},
    ),
    (
        *("iOS16", "constexpr_sparse_to_dense"),
        {
            "nonzero_data": RNG.random(4).astype(np.float16),
            "mask": np.array([0b10100101], np.uint8),
            "shape": np.array([2, 4], np.uint32),
        },
    ),
    ("iOS16", "constexpr_cast", {"source_val": SCALES, "output_dtype": "fp32"}),
]


@pytest.mark.parametrize(("target", "name", "given"), STORED)
def test_weights_in_fewer_bits_are_what_apples_definition_says(target: str, name: str, given: dict[str, Any]) -> None:
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb

        found: list[Any] = []

        @mb.program(input_specs=[], opset_version=getattr(ct.target, target))
        def program() -> Any:
            found.append(getattr(mb, name)(**given))
            return found[0]

    expected = np.asarray(found[0].op.materialized_val_inference())
    tensors = {
        key: value.astype(np.int64) if getattr(value, "dtype", None) == np.uint32 else value
        for key, value in given.items()
    }
    got = ours(name, tensors, torch.from_numpy(expected).dtype)[0]
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_vectors_of_a_lookup_table_lie_along_their_axis() -> None:
    lut = np.arange(12, dtype=np.float16).reshape(1, 1, 1, 4, 3)
    indices = RNG.integers(0, 4, (2, 3, 2)).astype(np.uint8)
    for axis in range(3):
        with quiet():
            from coremltools.optimize import _utils

            expected = _utils.lut_to_dense(indices, lut, axis)
        given = {"indices": indices, "lut": lut, "vector_axis": np.int32(axis)}
        np.testing.assert_array_equal(ours("constexpr_lut_to_dense", given, torch.float16)[0], expected)


class Layers(nn.Module):
    """What coremltools infers no values of: convolutions, pooling, resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.back = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.deep = nn.Conv3d(2, 2, 3, padding=(1, 2, 2), dilation=(1, 2, 2))
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.batch = nn.BatchNorm2d(4)
        self.batch.running_mean += 0.3  # type: ignore[operator]
        self.batch.running_var *= 2.0  # type: ignore[operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.batch(self.back(self.wide(x)))
        y = nn.functional.max_pool2d(y, 3, 2, 1)
        y = nn.functional.interpolate(y, scale_factor=2, mode="nearest")
        y = nn.functional.interpolate(y, scale_factor=2, mode="bilinear") + nn.functional.instance_norm(y).mean()
        y = nn.functional.avg_pool2d(y, 2)
        y = nn.functional.avg_pool2d(y, 2) + nn.functional.avg_pool2d(y, 3, 2, 1)
        y = self.line(y.flatten(2)).reshape(y.shape)
        y = self.deep(y.reshape(1, 2, 2, *y.shape[2:])).reshape(y.shape)
        return nn.functional.pixel_shuffle(y, 2)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    module, x = Layers().eval(), torch.randn(1, 4, 8, 8)
    return converted(module, (x,), tmp_path_factory.mktemp("layers"), precision="fp32"), module, x


def test_layers_are_torchs(layers: tuple[Path, nn.Module, torch.Tensor]) -> None:
    package, module, x = layers
    found = check_package(package, module, (x,))
    assert found.error_fp32 < 1e-5 and found.error_fp16 < 1e-5  # a program of float32 rounds nothing
    kinds = {one.operation for one in found.audit.readings}
    assert {"conv", "conv_transpose", "max_pool", "avg_pool", "upsample_nearest_neighbor", "upsample_bilinear"} <= kinds
