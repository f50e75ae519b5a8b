"""What of an autoencoder is not chosen: how it enters, re-samples and leaves, and the whole of its encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.blocks.convolution import group_norm
from search_spaces.blocks.residual import CausalConv3D, Residual2D
from search_spaces.errors import SpaceError
from search_spaces.families.autoencoder.layout import FRAMES

if TYPE_CHECKING:
    from search_spaces.families.contract import At, Watch


class TimeUp(nn.Module):
    """Twice the frames, beside a shortcut that shows each twice; a causal first frame stays one.

    Args:
        channels: C. causal: whether the first of the frames it makes is dropped.
    """

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """``(B*T, C, H, W)`` to ``(B*2T, C, H, W)``, or ``(B*(2T-1), C, H, W)``."""
        _, channels, height, width = x.shape
        # Channels of the later of two frames come after those of the earlier: what is folded stays in order.
        twice = self.conv(x).reshape(-1, channels, height, width) + x.repeat_interleave(2, dim=0)
        if not self.causal:
            return twice
        clips = twice.reshape(-1, 2 * num_frames, channels, height * width)[:, 1:]
        return clips.reshape(-1, channels, height, width)


class TimeDown(nn.Module):
    """Half the frames, beside a shortcut that shows their mean; of a causal clip the first frame stays alone."""

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """``(B*T, C, H, W)`` to ``(B*T/2, C, H, W)``, or ``(B*(T+1)/2, C, H, W)``."""
        _, channels, height, width = x.shape
        if self.causal:  # the first frame twice, so that it is all of the first pair
            clips = x.reshape(-1, num_frames, channels, height * width)
            x = torch.cat([clips[:, :1], clips], dim=1)
        pairs = x.reshape(-1, 2 * channels, height, width)
        return self.conv(pairs) + (pairs[:, :channels] + pairs[:, channels:]) / 2


class SpaceUp(nn.Module):
    """Twice the rows and columns by pixel shuffle, beside a shortcut that rearranges the channels as they are.

    Source: the residual autoencoding of DC-AE (arXiv 2410.10733, section 3.2).
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.repeats = nn.Conv2d(channels, 4 * out, 3, padding=1), 4 * out // channels

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, out, 2H, 2W)``."""
        many = x[:, :, None].expand(-1, -1, self.repeats, -1, -1).flatten(1, 2)
        return F.pixel_shuffle(self.conv(x) + many, 2)


class SpaceDown(nn.Module):
    """Half the rows and columns, beside a shortcut that averages the rearranged channels; as in DC-AE."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(channels, out // 4, 3, padding=1), out

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, out, H/2, W/2)``."""
        shown = F.pixel_unshuffle(x, 2).unflatten(1, (self.out, -1)).mean(2)
        return F.pixel_unshuffle(self.conv(x), 2) + shown


class Leave(nn.Module):
    """From the last stage to what is asked for, ``patch`` pixels on a side."""

    def __init__(self, channels: int, out: int, patch: int) -> None:
        super().__init__()
        self.patch, self.norm = patch, group_norm(channels)
        self.conv = nn.Conv2d(channels, out * patch**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, out, H*patch, W*patch)``."""
        out = self.conv(F.silu(self.norm(x)))
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out


class Enter(nn.Module):
    """From frames to the encoder's first stage."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(FRAMES * patch**2, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, C, H/patch, W/patch)``."""
        return self.conv(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)


class Encoder(nn.Module):
    """The decoder's mirror, with one stage of depth 1 at every resolution: causal where the decoder holds all frames.

    Args:
        config: see ``layout.decoder_layout``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels, causal = config["channels"], bool(config["causal"])
        self.enter = Enter(channels[-1], config["patch"])
        self.stages = nn.ModuleList(
            (CausalConv3D if i < config["whole"] else Residual2D)(count, width=count, depth=1)
            for i, count in enumerate(channels)
        )
        steps = list(enumerate(zip(config["time"], config["space"], strict=True)))
        self.spaces = nn.ModuleDict({f"{i}": SpaceDown(channels[i + 1], channels[i]) for i, (_, s) in steps if s > 1})
        self.times = nn.ModuleDict({f"{i}": TimeDown(channels[i], causal) for i, (t, _) in steps if t > 1})
        self.leave = Leave(channels[0], 2 * config["latent_channels"], 1)
        self.causal = causal

    def forward(self, video: Tensor, frames: int) -> Tensor:
        """``(B*T, 3, H, W)`` to ``(B*t, 2*z, h, w)``."""
        x = self.enter(video)
        for i in reversed(range(len(self.stages))):
            x = self.stages[i](x, frames)
            before = str(i - 1)
            x = self.spaces[before](x) if before in self.spaces else x
            if before in self.times:
                x = self.times[before](x, frames)
                frames = (frames + int(self.causal)) // 2
        return self.leave(x)


class Frame(nn.Module):
    """All of an autoencoder but the decoder's stages.

    Args:
        config: see ``layout.decoder_layout``.

    Attributes:
        times, spaces: what lies between two stages, by the number of the first. encoder: None where there is none.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels = config["channels"]
        self.stages, self.whole, self.causal = len(channels), int(config["whole"]), bool(config["causal"])
        self.enter = nn.Conv2d(config["latent_channels"], channels[0], 3, padding=1)
        steps = list(enumerate(zip(config["time"], config["space"], strict=True)))
        self.times = nn.ModuleDict({f"{i}": TimeUp(channels[i], self.causal) for i, (t, _) in steps if t > 1})
        self.spaces = nn.ModuleDict({f"{i}": SpaceUp(channels[i], channels[i + 1]) for i, (_, s) in steps if s > 1})
        self.leave = Leave(channels[-1], FRAMES, config["patch"])
        self.encoder = Encoder(config) if config["encoder"] else None

    def later(self, i: int, x: Tensor, frames: int) -> tuple[Tensor, int]:
        """More frames after stage ``i``, where there are, and how many there are then."""
        if str(i) not in self.times:
            return x, frames
        return self.times[str(i)](x, frames), 2 * frames - int(self.causal)

    def larger(self, i: int, x: Tensor) -> Tensor:
        """Larger frames after stage ``i``, where they are."""
        return self.spaces[str(i)](x) if str(i) in self.spaces else x


def run_decoder(frame: nn.Module, x: Tensor, frames: int, at: At, watch: Watch | None) -> Tensor:
    """Latents ``(B*t, z, h, w)`` to frames ``(B*T, 3, H, W)``; ``at`` is told the frames beside the running tensor."""
    assert isinstance(frame, Frame)
    out = run_whole(frame, x, frames, at, watch)
    return run_each(frame, out, at, watch) if frame.whole < frame.stages else out


def run_whole(frame: nn.Module, x: Tensor, frames: int, at: At, watch: Watch | None) -> Tensor:
    """Latents ``(B*t, z, h, w)`` as far as all frames are held: ``(B*T, C, h', w')``."""
    assert isinstance(frame, Frame)
    if watch is not None:
        watch("enter", x, ())
    x = frame.enter(x)
    for i in range(frame.whole):
        if watch is not None:
            watch(f"stage.{i}", x, ())
        x = at(f"stage.{i}", x, {"frames": frames})  # type: ignore[dict-item]
        x, frames = frame.later(i, x, frames)
        x = frame.larger(i, x) if i < frame.whole - 1 else x
    return x if frame.whole < frame.stages else run_each(frame, x, at, watch)


def run_each(frame: nn.Module, held: Tensor, at: At, watch: Watch | None) -> Tensor:
    """Held frames ``(N, C, h', w')``, any of them, to frames ``(N, 3, H, W)``: none depends on another.

    What is alive meanwhile is told to ``watch`` as one skip, ``held``, of all of them.
    """
    assert isinstance(frame, Frame)
    told = [("held", held)] if frame.whole < frame.stages else []
    x = frame.larger(frame.whole - 1, held)
    for i in range(frame.whole, frame.stages):
        if watch is not None:
            watch(f"stage.{i}", x, told)
        x = frame.larger(i, at(f"stage.{i}", x, {"frames": len(x)}))  # type: ignore[dict-item]
    if watch is not None:
        watch("leave", x, told)
    return frame.leave(x)


def run_encoder(frame: nn.Module, video: Tensor, frames: int) -> Tensor:
    """Frames ``(B*T, 3, H, W)`` to moments ``(B*t, 2*z, h, w)``.

    Raises:
        SpaceError: if there is no encoder.
    """
    assert isinstance(frame, Frame)
    if frame.encoder is None:
        raise SpaceError("this decoder has no encoder of its own; distil it for a given one")
    out: Tensor = frame.encoder(video, frames)
    return out


def units(frame: nn.Module) -> Iterable[nn.Module]:
    """What lies between stages, and the encoder's parts."""
    assert isinstance(frame, Frame)
    yield from (frame.enter, *frame.times.values(), *frame.spaces.values(), frame.leave)
    if frame.encoder is not None:
        inner = frame.encoder
        yield from (inner.enter, *inner.stages, *inner.spaces.values(), *inner.times.values(), inner.leave)


class Whole(nn.Module):
    """The bare frame as far as it holds all frames of a clip."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.enter, self.times, self.alone = frame.enter, frame.times, frame.whole == frame.stages
        ends = frame.whole if self.alone else frame.whole - 1
        self.spaces = nn.ModuleDict({i: step for i, step in frame.spaces.items() if int(i) < ends})
        self.leave = frame.leave if self.alone else None
        self.stages, self.causal = frame.whole, frame.causal

    def forward(self, x: Tensor) -> Tensor:
        """Latents ``(t, z, h, w)`` of one clip to the frames that are held, or, if all stages hold them, to the end."""
        frames, x = x.shape[0], self.enter(x)
        for i in map(str, range(self.stages)):
            if i in self.times:
                x, frames = self.times[i](x, frames), 2 * frames - int(self.causal)
            x = self.spaces[i](x) if i in self.spaces else x
        return x if self.leave is None else self.leave(x)


class Each(nn.Module):
    """The bare frame past that, which runs frame by frame."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.steps = nn.ModuleList(step for i, step in frame.spaces.items() if int(i) >= frame.whole - 1)
        self.leave = frame.leave

    def forward(self, x: Tensor) -> Tensor:
        """Held frames ``(N, C, h, w)`` to as many frames of the video."""
        for step in self.steps:
            x = step(x)
        return self.leave(x)


def part_of(frame: nn.Module, name: str) -> nn.Module:
    """Part ``whole`` or ``frame`` of a frame, as a module of ``x`` alone."""
    assert isinstance(frame, Frame)
    return Whole(frame) if name == "whole" else Each(frame)
