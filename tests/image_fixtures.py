"""An image space that trains in a second: two stages, a few variants, pictures of 8x8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from search_spaces.space import Space

TRANSFORMER = "TextTransformer(self_attention=1,head_width=4,kv_heads=1,ratio=2,gated=1)"
PLACES = ("down.0.0.0", "down.1.0.0", "up.0.0.0", "up.1.0.0")
CONFIG = {"block_out_channels": [8, 16], "cross_attention_dim": 16, "blocks": 1}


def spatial(variants: tuple[str, ...] = ("FullConv", TRANSFORMER)) -> list[dict[str, Any]]:
    """The positions of a space's stored definition."""
    sizes = {"down.0.0.0": (8, 1), "down.1.0.0": (16, 2), "up.0.0.0": (16, 2), "up.1.0.0": (8, 1)}
    return [
        {
            "name": name,
            "channels": sizes[name][0],
            "downscale": sizes[name][1],
            "max_layers": 1,
            "least": 1,
            "variants": list(variants),
        }
        for name in PLACES
    ]


def image_space(frames: int = 1, positions: list[dict[str, Any]] | None = None) -> Space:
    """Pictures, or clips of the same network."""
    from search_spaces.families import family_of

    clip = {"frames": frames, "height": 8, "width": 8, "fps": 4}
    return Space.from_json(
        {
            "name": "pictures" if frames == 1 else "moving_pictures",
            "backbone": {
                "name": "tiny_image",
                "config": {**family_of("tiny_image").presets["tiny_image"].config, **CONFIG},
            },
            "latent_channels": 3,
            "autoencoder": {"time": 1, "space": 1},
            "text": {"tokens": 12, "dim": 16},
            "clips": {"training": clip, "deployment": clip},
            "positions": positions or spatial(),
        }
    )


def write_pictures(folder: Path, count: int = 6) -> None:
    """Captioned PNGs of one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), ["path,caption"]
    for index in range(count):
        colour = rng.integers(0, 255, 3, dtype=np.uint8)
        Image.fromarray(np.broadcast_to(colour, (20, 24, 3)).copy()).save(folder / f"{index}.png")
        lines.append(f"{index}.png,picture {index}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
