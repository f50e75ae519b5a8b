"""Making a preference set: clips of a prompt from several noises, or pairs from corrupted copies of a real clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.errors import NasError
from nas.files import held
from nas.preferences.config import PreferConfig
from nas.preferences.folder import Group, Header, PreferenceSet
from nas.preferences.labels import read_labels
from nas.preferences.rewards import Judged, Reward, checked, open_reward, wins_of
from nas.tasks.noise import clean_estimate, mix

Progress = Callable[[int, int, str], None]
FILES = ("labels:", "judge:")


def make_set(
    model: Path,
    config: PreferConfig,
    out: Path,
    *,
    join: Sequence[Path] = (),
    progress: Progress = lambda done, total, told: None,
) -> dict[str, Any]:
    """Make a set in ``out``, or go on with the one there; judge every group by every reward that has not.

    A group is a pure function of model, settings, seed and number; several processes may write one set at once, each
    group is made by one of them, and a process that ends costs the group that it was at.

    Args:
        join: other sets of the same making that are taken over first.

    Returns:
        ``set``, ``groups``, ``joined``, ``rewards``, ``left_out`` (a judge's labels that did not survive swapping),
        ``page``.

    Raises:
        NasError: if the model is none, ``out`` holds another set, or a reward is unknown or answers no number.
    """
    from nas.model.pipeline import load_pipeline
    from nas.preferences.page import write_page_of

    pipeline = load_pipeline(model)
    maker = Maker(pipeline, config)
    files = {name: read_labels(Path(name.partition(":")[2]), name.startswith("judge:")) for name in _files(config)}
    clip = pipeline.unet.space.clip("training")
    rewards = {name: open_reward(name, config, clip) for name in config.rewards if name not in files}
    kept = PreferenceSet(out, maker.header)
    joined = sum(kept.join(PreferenceSet(other)) for other in join)
    names = [f"s{config.seed}-{index:06d}" for index in range(config.prompts)]
    _fill(kept, maker, rewards, names, progress)
    for name in kept.names():
        if _open(kept, name, list(rewards)):  # of an earlier seed, or joined: judged by what is new too
            with held(kept.lock(name), True):
                _judge(kept, maker, rewards, name)
        for which, labels in files.items():
            kept.keep(which, name, labels.wins(name, kept.header.clips, kept.header.count))
    unknown = sorted({group for labels in files.values() for group in labels.by_group} - set(kept.names()))
    if unknown:
        raise NasError(
            f"labels name group {unknown[0]!r}, which the set does not hold; its groups are {names[0]} and on"
        )
    return {
        "set": str(out),
        "groups": len(kept.names()),
        "joined": joined,
        "rewards": list(config.rewards),
        "left_out": sum(labels.left_out for labels in files.values()),
        "page": str(write_page_of(kept, maker.frames)),
    }


def _fill(
    kept: PreferenceSet, maker: Maker, rewards: dict[str, Reward], names: Sequence[str], progress: Progress
) -> None:
    """Make and judge the groups that are not there: first what nobody is at, then what others have not finished."""
    done = 0
    for wait in (False, True):
        for index, name in enumerate(names):
            if not _open(kept, name, list(rewards)):
                continue
            try:
                with held(kept.lock(name), wait):
                    if not kept.path(name).exists():
                        kept.write(maker.make(name, index))
                    _judge(kept, maker, rewards, name)
            except BlockingIOError:
                continue
            done += 1
            progress(done, len(names), name)


def _files(config: PreferConfig) -> list[str]:
    return [name for name in config.rewards if name.startswith(FILES)]


def _open(kept: PreferenceSet, name: str, rewards: Sequence[str]) -> bool:
    """Whether something is left to do for a group."""
    return not kept.path(name).exists() or not all(kept.judged(reward, name) for reward in rewards)


def _judge(kept: PreferenceSet, maker: Maker, rewards: dict[str, Reward], name: str) -> None:
    """Have every reward that has not judged a group do so, segment by segment."""
    left = [reward for reward in rewards if not kept.judged(reward, name)]
    if not left:
        return
    group = kept.read(name)
    videos = maker.frames(group.clips)
    real = maker.frames(group.real[None])[0] if group.real is not None else None
    parts = [np.flatnonzero(np.asarray(kept.header.segments) == s) for s in range(kept.header.count)]
    for reward in left:
        scores = [
            checked(
                rewards[reward](Judged(name, group.prompt, videos[:, part], None if real is None else real[part])),
                reward,
                Judged(name, group.prompt, videos[:, part]),
            )
            for part in parts
        ]
        table = np.stack(scores, axis=1)
        kept.keep(reward, name, wins_of(table, maker.config.tie), table)


class Maker:
    """Makes the groups of a set with one model.

    Args:
        pipeline: the model. config: how.

    Raises:
        NasError: if guided pairs are wanted and the data does not give what the model takes.
    """

    def __init__(self, pipeline: Any, config: PreferConfig) -> None:
        self.pipeline, self.config = pipeline, config
        space = pipeline.unet.space
        clip = space.clip("training")
        frames, channels, height, width = space.latent_shape("training")
        self.shape = (channels, frames, height, width)
        self.levels, self.guidance = pipeline.plan(config.steps, guidance_scale=config.guidance)
        self.renoise = bool(pipeline.scheduler.config.stochastic_sampling)
        self.data = self._open_data(space, clip)
        segments = (
            segments_of(clip.frames, clip.fps, config.segment_s) if config.kind == "guided" else [0] * clip.frames
        )
        self.header = Header(
            kind=config.kind,
            clips=config.members,
            model=pipeline.fingerprint(),
            made={
                "steps": len(self.levels),
                "guidance": self.guidance,
                "noise": list(config.noise) if config.kind == "guided" else None,
            },
            latents=self.shape,
            autoencoder=latents_of(pipeline),
            fps=float(clip.fps),
            shape=(clip.frames, clip.height, clip.width),
            segments=tuple(segments),
            latent_segments=tuple(latent_segments(segments, frames, space.autoencoder.time)),
        )

    def _open_data(self, space: Any, clip: Any) -> Any:
        from nas.data import open_data
        from nas.data.cached import check_data, check_source
        from nas.data.lengths import fits

        check_source(space, self.config.data.source)
        check = fits(self.pipeline.tokenizer, self.pipeline.text_encoder.config.max_position_embeddings)
        data = open_data(self.config.data, clip, "train", self.config.seed, check)
        check_data(space, data)
        self.pipeline.check_prompts(data.captions)
        return data

    @torch.no_grad()
    def make(self, name: str, index: int) -> Group:
        """The group of a number: nothing else decides what is in it."""
        config, count = self.config, self.config.members
        digest = hashlib.sha256(f"{config.seed}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        noise = torch.randn((count, *self.shape), generator=generator)
        if config.kind == "guided":
            item = self.data[index % len(self.data)]
            real = item["video"].transpose(0, 1)
            low, high = config.noise
            share = low + (high - low) * float(
                torch.rand((), generator=generator)
            )  # the same for both: else a shortcut
            start = mix(real[None].expand_as(noise), noise, torch.full((count,), share))
            steps = max(1, round(share * len(self.levels)))
            levels = torch.linspace(share, share / steps, steps).tolist()
            clips = self._denoised(start, levels, item["caption"], generator)
            return Group(name, item["caption"], clips, noise, real, share)
        captions = self.data.captions
        order = np.random.default_rng(config.seed).permutation(len(captions))
        prompt = str(captions[order[index % len(captions)]])
        return Group(name, prompt, self._denoised(noise, self.levels, prompt, generator), noise, None, 1.0)

    def _denoised(self, latents: Tensor, levels: Sequence[float], prompt: str, generator: torch.Generator) -> Tensor:
        """Euler steps from the first level to clean clips, as the pipeline takes them."""
        pipeline = self.pipeline
        context = pipeline.encode([prompt] * len(latents))
        empty = pipeline.encode([""] * len(latents)) if self.guidance != 1.0 else None
        for level, after in zip(levels, [*levels[1:], 0.0], strict=True):
            velocity = pipeline.unet(latents, 1000.0 * level, context).sample
            if empty is not None:
                plain = pipeline.unet(latents, 1000.0 * level, empty).sample
                velocity = plain + self.guidance * (velocity - plain)
            if self.renoise:
                clean = clean_estimate(latents, velocity, torch.full((len(latents),), level))
                fresh = torch.randn(latents.shape, generator=generator)
                latents = mix(clean, fresh, torch.full((len(latents),), after))
            else:
                latents = latents + (after - level) * velocity
        return latents

    @torch.no_grad()
    def frames(self, clips: Tensor) -> Any:
        """(k, T, H, W, 3) in 0..1 of clips of latents (k, C, T, h, w)."""
        return self.pipeline.decode(clips).numpy()


def segments_of(frames: int, fps: float, seconds: float) -> list[int]:
    """The segment of every frame of pixels: seconds each, the last one perhaps shorter."""
    return [int(frame / fps / seconds + 1e-9) for frame in range(frames)]


def latent_segments(segments: Sequence[int], frames: int, time: int) -> list[int]:
    """The segment of every frame of latents: that of its last frame of pixels, of ``time`` frames each."""
    return [segments[max(0, len(segments) - 1 - time * (frames - 1 - frame))] for frame in range(frames)]


def latents_of(pipeline: Any) -> str:
    """Whose latents a model works in: ``pixels``, or 12 hex characters of its autoencoder's weights."""
    if pipeline.vae is None:
        return "pixels"
    digest = hashlib.sha256()
    for name, tensor in sorted(pipeline.vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
