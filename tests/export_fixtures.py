"""The model that the tests of exports share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from training_fixtures import clips, tiny

from nas.model.network import VideoUNet
from nas.model.pipeline import TextToVideoPipeline
from nas.pretrained.text import TextEncoder
from nas.supernet.supernet import Supernet

SMALL = (4, 16, 16)  # frames, height, width


def save_model(path: Path) -> Path:
    """A model folder of the tiny space, its arrangement and weights drawn at random."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arrangement = tiny().sample(np.random.default_rng(2))
    unet = VideoUNet.of(tiny(), Supernet(tiny()).eval().extract(arrangement), arrangement)
    text = TextEncoder.small(tiny(), clips().captions).eval()
    TextToVideoPipeline(unet, text.model, text.tokenizer, FlowMatchEulerDiscreteScheduler()).save_pretrained(path)
    return path
