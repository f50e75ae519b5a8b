"""Groups of a preference set as batches of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nas.data.clip import check_index, generator
from nas.errors import NasError
from nas.preferences.folder import PreferenceSet
from nas.preferences.making import latents_of
from nas.training.batches import Batch
from nas.training.config import StageConfig
from nas.training.distributed import World
from nas.training.loader import Loader

LABELLED = 0.2  # of a guided pair's segments must not tie, for it to be learnt from (DenseDPO, appendix A)


@dataclass(frozen=True)
class PixelClip:
    """A clip's shape in pixels."""

    frames: int
    height: int
    width: int
    fps: float


class Groups:
    """Map-style: (k, T, C, H, W) clips of a prompt, ``preference`` (k, T), by the segment of each frame of latents.

    Args:
        names: of the groups that are learnt from.
    """

    skipped = ()

    def __init__(self, kept: PreferenceSet, names: Sequence[str], rewards: Sequence[str], seed: int) -> None:
        self.kept, self.names, self.rewards, self.seed = kept, list(names), tuple(rewards), seed
        self._segments = torch.tensor(kept.header.latent_segments)

    @property
    def captions(self) -> Sequence[str]:
        return tuple(dict.fromkeys(self.kept.read(name).prompt for name in self.names))

    def __len__(self) -> int:
        return 1 << 20  # nominal: the groups come again in another order

    def __getitem__(self, index: int) -> Any:
        epoch, place = divmod(check_index(index, len(self)), len(self.names))
        name = self.names[int(generator(self.seed, "train", epoch).permutation(len(self.names))[place])]
        group = self.kept.read(name)
        found = self.kept.preference(name, self.rewards)
        assert found is not None  # of ``names``
        by_frame = torch.from_numpy(found).float()[:, self._segments]
        return {"video": group.clips.transpose(1, 2), "caption": group.prompt, "preference": by_frame}


class PreferenceClips:
    """The source of a stage that learns from preferences: see ``nas.recipes.contract.Source``.

    Args:
        dense: whether every segment is learnt from by itself.

    Raises:
        NasError: if the set is of other latents than the model's, is no set of pairs where pairs are needed, or holds
            no group in which one clip is better than another.
    """

    def __init__(
        self,
        pipeline: Any,
        kept: PreferenceSet,
        config: StageConfig,
        rewards: Sequence[str],
        seed: int,
        world: World,
        dense: bool,
    ) -> None:
        self.world, self.header = world, kept.header
        _check(pipeline, kept, dense)
        if config.clips % world.size:
            raise NasError(f"clips must divide by the {world.size} processes that share it, but is {config.clips}")
        self.names = [name for name in kept.names() if _tells(kept, name, rewards, dense)]
        if not self.names:
            of = f" by {', '.join(rewards)}" if rewards else ""
            raise NasError(
                f"{kept.folder}: in none of its {len(kept.names())} groups is one clip better than another{of}; judge "
                "them with nas prefer, or add groups with a higher prompts"
            )
        self.data = Groups(kept, self.names, rewards, seed)
        self._loader = Loader(self.data, config.clips, world.share, config.workers)
        self.loaders = (self._loader,)
        frames, height, width = kept.header.shape
        self.clips = [PixelClip(frames, height, width, kept.header.fps)]
        self.captions = self.data.captions
        self.facts = {"preferences": kept.fingerprint()}

    def groups(self, turn: int) -> Batch:
        """video: (B, k, C, T, H, W); ``extras["preference"]``: (B, k, T); a caption a group."""
        batch = self._loader(turn)
        device = self.world.device
        extras = {name: tensor.to(device) for name, tensor in batch.extras.items()}
        return Batch(batch.video.transpose(2, 3).to(device), batch.captions, extras)


def _check(pipeline: Any, kept: PreferenceSet, dense: bool) -> None:
    header, space = kept.header, pipeline.unet.space
    frames, channels, height, width = space.latent_shape("training")
    mine, own = (channels, frames, height, width), latents_of(pipeline)
    if header.latents != mine or header.autoencoder != own:
        raise NasError(
            f"{kept.folder}: a preference set of {'x'.join(map(str, header.latents))} latents of {header.autoencoder}, "
            f"but the model's are {'x'.join(map(str, mine))} of {own}; make one with nas prefer and this model"
        )
    if dense and header.kind != "guided":
        raise NasError(
            f"{kept.folder}: holds clips of independent noise, whose segments show different things; preference.loss="
            "dense needs a set made with kind=guided"
        )


def _tells(kept: PreferenceSet, name: str, rewards: Sequence[str], dense: bool) -> bool:
    """Whether there is something to learn from a group."""
    found = kept.preference(name, rewards)
    if found is None:
        return False
    if dense:
        return bool((found[0] != found[1]).mean() > LABELLED)
    means = found.mean(1)
    return bool(means.max() > means.min())
