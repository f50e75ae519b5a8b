"""A model folder that fine-tunes in a second: random weights, four frames of 8x8, one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from nas.config import DataConfig
from nas.data import open_data
from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline, save_pipeline
from nas.pretrained.text import TextEncoder
from nas.recipes.adversarial import AdversarialConfig
from nas.recipes.config import FinetuneConfig, MotionConfig, known_settings
from nas.recipes.joint import JointConfig
from search_spaces.space import Space

TOOK = ("seconds", "waited", "frames_per_s", "loader_frames_per_s", "memory_mb")  # of a row, what no seed repeats
DATA = DataConfig(source="moving_shapes", max_objects=1, validation_clips=8)

SPACE: dict[str, Any] = {
    "name": "mini",
    "backbone": {
        "name": "tiny",
        "config": {
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "mid_block_type": None,
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "cross_attention_dim": 16,
            "attention_head_dim": 1,
            "norm_num_groups": 4,
        },
    },
    "latent_channels": 3,
    "autoencoder": {"time": 1, "space": 1},
    "text": {"tokens": 12, "dim": 16},
    "clips": {
        "training": {"frames": 4, "height": 8, "width": 8, "fps": 4},
        "deployment": {"frames": 6, "height": 8, "width": 16, "fps": 4},
    },
    "positions": [
        {
            "name": name,
            "channels": 16,
            "downscale": 2,
            "max_layers": 1,
            "variants": ["Conv1D(kernel_size=3)", "SelfAttention1D(heads=1)"],
        }
        for name in ("down.1.0", "up.0.0")
    ],
}


def mini() -> Space:
    torch.set_num_threads(1)
    return Space.from_json(SPACE)


def make_model(folder: Path, seed: int = 0) -> Path:
    """A model folder with random weights and one temporal layer on each way."""
    space = mini()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arrangement = space.arrange({"down.1.0": ["SelfAttention1D(heads=1)"], "up.0.0": ["Conv1D(kernel_size=3)"]})
        unet = VideoUNet(space=space.to_json(), arrangement=arrangement.to_json()).eval()
        for parameter in unet.network.temporal.parameters():  # the identity would hide what time does
            torch.nn.init.normal_(parameter, std=0.1)
        text = TextEncoder.small(space, open_data(DATA, space.clip("training")).captions)
    save_pipeline(TextToVideoPipeline(unet, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()), folder)
    return folder


def config(seed: int = 3, data: dict[str, Any] | None = None, **changes: Any) -> FinetuneConfig:
    """Six steps of either stage, a checkpoint every second one; ``changes`` go to the stages that know them."""
    short = {"steps": 6, "clips": 2, "images": 2, "checkpoint_every": 2, "ramp_steps": 1, "learning_rate": 1e-3}

    def some(kind: Any) -> Any:
        return kind(**{**short, **{name: v for name, v in changes.items() if name in kind.model_fields}})

    chosen = DataConfig.model_validate({**DATA.model_dump(), **(data or {})})
    told: dict[str, Any] = {"joint": some(JointConfig), "adversarial": some(AdversarialConfig)}
    return known_settings()(seed=seed, data=chosen, motion=MotionConfig(prompts=2, steps=1), **told)
