"""A small space in latents, the small models that it needs, saved by their own libraries, and videos for them."""

from __future__ import annotations

import warnings
from pathlib import Path

import av
import numpy as np
import torch
import yaml

from search_spaces.space import Space

WORDS = ["a", "red", "blue", "ball", "falls", "rises", "fast"]

SPACE = {
    "name": "small_latents",
    "description": "snapgen_v's shape of problem, as small as it gets.",
    "backbone": {
        "name": "sd15_pruned",
        "config": {
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        },
    },
    "autoencoder": {"time": 4, "space": 8},
    "text": {"tokens": 8},
    "clips": {"deployment": {"frames": 8, "height": 32, "width": 32, "fps": 8}},
    "positions": {
        "down.0.0": {"max_layers": 1, "variants": ["Conv1D(kernel_size=3)", "SelfAttention1D(heads=2)"]},
        "up.1.1": {"max_layers": 1, "variants": ["Conv1D(kernel_size=3)", "CrossAttention1D(heads=2)"]},
    },
}


def small_space(folder: Path, time: int = 4) -> Space:
    """The space as a YAML in ``folder``, loaded; ``time`` 1 suits an autoencoder of images."""
    torch.set_num_threads(1)
    path = folder / "small_latents.yaml"
    path.write_text(yaml.safe_dump({**SPACE, "autoencoder": {"time": time, "space": 8}}))
    return Space.load(str(path))


def save_allegro(folder: Path, seed: int = 0) -> str:
    """Weights of a small AutoencoderKLAllegro: time / 4, space / 8, 4 channels, as the large one."""
    from diffusers import AutoencoderKLAllegro

    torch.manual_seed(seed)
    model = AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=32, latent_channels=4
    )
    model.save_pretrained(str(folder))
    return str(folder)


def save_image_autoencoder(folder: Path) -> str:
    """Weights of a small AutoencoderKL: space / 8, 4 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    model.save_pretrained(str(folder))
    return str(folder)


def save_text(folder: Path, seed: int = 0, width: int = 16) -> str:
    """A small CLIP text model with its tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from nas.pretrained.text import word_tokenizer

    tokenizer = word_tokenizer([" ".join(WORDS)], 8)
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with warnings.catch_warnings():
        CLIPTextModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def write_video(path: Path, frames: int, height: int = 40, width: int = 48, fps: int = 8, seed: int = 0) -> Path:
    """A ball that falls over noise, losslessly."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    ground = ground.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "bgr0"
        for i in range(frames):
            picture = ground.copy()
            top = i * (height - 8) // max(1, frames - 1)
            picture[top : top + 8, width // 2 : width // 2 + 8] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def video_folder(folder: Path, count: int = 3, frames: int = 40) -> Path:
    """Captioned videos."""
    folder.mkdir()
    rows = ["path,caption"]
    for i in range(count):
        write_video(folder / f"{i}.mkv", frames, seed=i)
        rows.append(f"{i}.mkv,a {'red' if i % 2 else 'blue'} ball falls")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder
