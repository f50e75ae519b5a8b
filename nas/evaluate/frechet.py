"""Frechet distance between the features of real and generated videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError

Features = Callable[[NDArray[Any]], NDArray[np.float64]]  # (N, T, H, W, 3) in 0..1 -> (N, D)


def frechet_distance(real: NDArray[Any], made: NDArray[Any]) -> float:
    """Squared distance of two Gaussians fitted to features (N, D) and (M, D).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), by symmetric eigenvalues, so that it never becomes complex.

    Raises:
        NasError: if either side has fewer than two rows, or their widths differ.

    Source: Heusel et al. (arXiv 1706.08500); over videos, FVD, Unterthiner et al. (arXiv 1812.01717).
    """
    if min(len(real), len(made)) < 2 or real.shape[1:] != made.shape[1:]:
        raise NasError(f"two sets of two or more equally wide features are needed, not {real.shape} and {made.shape}")
    real, made = real.astype(np.float64), made.astype(np.float64)
    gap = real.mean(0) - made.mean(0)
    first, second = np.atleast_2d(np.cov(real, rowvar=False)), np.atleast_2d(np.cov(made, rowvar=False))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(max(0.0, gap @ gap + np.trace(first) + np.trace(second) - 2 * mixed))


def onnx_features(path: Path) -> Features:
    """Features by a network in an ONNX file, such as an I3D: (N, 3, T, H, W) floats in 0..1 to (N, D).

    ONNX, because it holds no code that runs on loading.

    Raises:
        NasError: if the file is none, or takes or gives another rank.
    """
    import onnxruntime

    if not path.is_file():
        raise NasError(f"{path}: no such file; give an ONNX network from (N, 3, T, H, W) to (N, D) to --features")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds, without a common base
        raise NasError(f"{path}: is no ONNX network ({str(error).strip().splitlines()[0]})") from error
    takes, gives = session.get_inputs()[0], session.get_outputs()[0]
    if len(takes.shape) != 5 or len(gives.shape) != 2:
        raise NasError(
            f"{path}: takes {takes.shape} and gives {gives.shape}; it must take (N, 3, T, H, W) in 0..1 and give (N, D)"
        )

    def features(videos: NDArray[Any]) -> NDArray[np.float64]:
        rows = []
        for video in videos:
            clip = np.ascontiguousarray(video.transpose(3, 0, 1, 2)[None], dtype=np.float32)
            try:
                rows.append(session.run([gives.name], {takes.name: clip})[0][0])
            except Exception as error:
                first = str(error).strip().splitlines()[0]
                raise NasError(f"{path}: refuses clips of {clip.shape} ({first})") from error
        return np.asarray(rows, dtype=np.float64)

    return features
