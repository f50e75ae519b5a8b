"""A small separable decoder's space, and what tests of decoders share."""

from __future__ import annotations

from pathlib import Path

SPACE = """name: small_decoder
backbone:
  name: separable
  config: {channels: [8, 8, 8, 8, 8, 8]}
autoencoder: {time: 4, space: 8}
clips:
  training: {frames: 8, height: 16, width: 16, fps: 8}
  deployment: {frames: 8, height: 32, width: 32, fps: 8}
positions:
  stage.0: {least: 1, max_layers: 1, variants: [Residual21D(width=8), CausalConv3D(width=8)]}
  stage.1: {least: 1, max_layers: 1, variants: [Residual2D(width=8)]}
  stage.2: {least: 1, max_layers: 1, variants: [Residual21D(width=8)]}
  stage.3: {least: 1, max_layers: 1, variants: [Residual2D(width=8)]}
  stage.4: {least: 1, max_layers: 1, variants: [Residual2D(width=8), Residual2D(width=16)]}
  stage.5: {least: 1, max_layers: 1, variants: [Residual2D(width=8)]}
"""


def save_space(folder: Path, text: str = SPACE) -> Path:
    """The space as a file."""
    path = folder / "small_decoder.yaml"
    path.write_text(text)
    return path
