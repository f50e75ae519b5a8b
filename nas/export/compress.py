"""Weights of a package in fewer bits, by coremltools.optimize; what that should save, and what it did."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from nas.errors import NasError

THRESHOLD = 2048  # elements: smaller weights stay as they are, which is coremltools' own default
BITS = {"int8": 8, "palettize8": 8, "palettize6": 6, "palettize4": 4}


def check(quantize: str | None) -> None:
    """Refuse what coremltools cannot be asked for.

    Raises:
        NasError: naming what it can.
    """
    if quantize is not None and quantize not in BITS:
        raise NasError(f"--quantize {quantize}: must be one of {', '.join(BITS)}")
    if quantize is not None and quantize != "int8" and importlib.util.find_spec("sklearn") is None:
        raise NasError(f"--quantize {quantize} needs scikit-learn: pip install 'temporal-nas[compress]'")


def predicted_mb(sizes: list[int], quantize: str | None) -> float:
    """Megabytes of weights with these numbers of elements: two bytes each, or the bits of the large ones.

    Lookup tables and scales are left out: a few kilobytes.
    """
    bits = 16 if quantize is None else BITS[quantize]
    large = sum(size for size in sizes if size > THRESHOLD)
    return (large * bits / 8 + 2 * (sum(sizes) - large)) / 1e6


def compress(package: Path, quantize: str) -> None:
    """Quantise or palettise the package's weights, in place.

    ``int8`` is linear and symmetric, a scale for each output channel; ``palettizeN`` keeps a table of 2^N values a
    tensor, found by k-means.
    """
    import shutil

    from device_profiler.quiet import quiet

    with quiet():
        import coremltools as ct
        import coremltools.optimize.coreml as optimize

        model: Any = ct.models.MLModel(str(package), skip_model_load=True)
        if quantize == "int8":
            how = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=THRESHOLD)
            small = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=how))
        else:
            how = optimize.OpPalettizerConfig(mode="kmeans", nbits=BITS[quantize], weight_threshold=THRESHOLD)
            small = optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=how))
        partial = package.with_name(f"small-{package.name}")
        small.save(str(partial))
    shutil.rmtree(package)
    partial.rename(package)
