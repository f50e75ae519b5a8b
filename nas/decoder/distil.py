"""A searched decoder for an encoder that stays: trained on its latents, by the loop of every training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.decoder.config import DistilConfig, DistilSettings
from nas.decoder.folder import DISTIL, is_begun, load_autoencoder, save_autoencoder
from nas.errors import NasError
from nas.outputs import check_replaceable
from nas.pretrained.autoencoder import VideoAutoencoder
from nas.pretrained.searched import SearchedAutoencoder, plain_config
from nas.training.batches import Batch, Batches, validated
from nas.training.distributed import World
from nas.training.draws import Draws
from nas.training.engine import Engine
from nas.training.loop import Loop
from nas.training.single import OneOptimizer
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space


class Distil(OneOptimizer):
    """Trains a decoder on pairs of latents and frames; the encoder, and the decoder it comes from, stay as they are.

    Args:
        model: its network is trained in place. given: the autoencoder whose encoder stays, whole.
    """

    key = "distil"
    averaged = frozenset({"decoder"})
    window = 1
    config: DistilConfig

    def __init__(
        self,
        model: SearchedAutoencoder,
        given: VideoAutoencoder,
        batches: Batches,
        config: DistilConfig,
        engine: Engine,
    ) -> None:
        self.model, self.given, self.batches, self.config, self.engine = model, given, batches, config, engine
        self.loaders = batches.loaders
        self.network = model.network.to(engine.device).train()
        self.given.to(engine.device)
        self.modules: dict[str, nn.Module] = {"decoder": self.network}
        learning = learns(model, config.half)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in learning)
        engine.prepare(self.network, units(model), methods=("run",))
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.optimizers = {"": self.optimizer}

    def learn(self, turn: int, draws: Draws) -> dict[str, float]:
        """The new decoder's difference from the given one on a batch; see ``OneOptimizer``."""
        loss = self._loss(self.batches.videos(turn), draws)
        self.engine.back(loss)
        return {"loss": float(loss.detach())}

    @torch.no_grad()
    def validate(self) -> float | None:
        """The loss on unseen videos."""
        return validated(self.batches, self._loss)

    def _loss(self, batch: Batch, draws: Draws) -> Tensor:
        config, video = self.config, batch.video.transpose(1, 2)  # (B, T, 3, H, W)
        with torch.no_grad():
            latents, made = self._latents(video, draws)
        folded = {"x": latents.flatten(0, 1), "frames": latents.shape[1]}
        with self.engine.autocast():
            out = self.network.run(folded).unflatten(0, (len(video), -1)).float()
        if config.latents == "synthetic":
            assert made is not None
            return self._apart(out, made)
        loss = self._apart(out, video)
        return loss if made is None else loss + config.imitate * self._apart(out, made)

    def _latents(self, video: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Scaled latents (B, t, C, h, w), and what the given decoder makes of them, where that is asked for."""
        latents = torch.stack([self.given.encode(clip) for clip in video]).to(video)
        if self.config.latents == "synthetic":
            latents = draws.normal(latents)
        if self.config.latents != "synthetic" and not self.config.imitate:
            return latents, None
        return latents, torch.stack([self.given.decode(clip) for clip in latents]).to(video).clamp(-1, 1)

    def _apart(self, out: Tensor, target: Tensor) -> Tensor:
        error = F.l1_loss if self.config.reconstruction == "l1" else F.mse_loss
        loss = error(out, target)
        if self.config.differences and out.shape[1] > 1:
            loss = loss + self.config.differences * error(out.diff(dim=1), target.diff(dim=1))
        return loss


def units(model: SearchedAutoencoder) -> list[nn.Module]:
    """What is recomputed, sharded and compiled one by one."""
    network: Any = model.network
    layers = [layer for several in network.temporal.values() for layer in several]
    return [*model.space.backbone.family.units(network.unet), *layers]


def learns(model: SearchedAutoencoder, half: str) -> set[str]:
    """The parameters of the network that belong to a half: all that the frames held as a whole pass, or the rest."""
    names = {name for name, _ in model.network.named_parameters()}
    if half == "both":
        return names
    layout, network = model.space.backbone.layout, model.network
    late = [part.name for part in layout.parts if part.by_frame]
    if not late:
        raise NasError(f"distil.half={half}: every stage of {model.space.name} holds all frames; leave it at both")
    each = model.space.backbone.family.part(network.unet, late[0])
    held = {id(parameter) for parameter in each.parameters()}
    for place in layout.places:
        if place.by_frame:
            held |= {id(p) for p in network.temporal[place.name.replace(".", "_")].parameters()}
    spatial = {name for name, parameter in network.named_parameters() if id(parameter) in held}
    return spatial if half == "spatial" else names - spatial


def new_decoder(given: VideoAutoencoder, space: Space, arrangement: Arrangement, seed: int = 0) -> SearchedAutoencoder:
    """A fresh decoder behind the given encoder, whose weights and statistics it takes over.

    Raises:
        NasError: if the given autoencoder's factors, channels or first frame are not those of the space.
    """
    given.check_fits(space)
    if given.kind == "SearchedAutoencoder":
        raise NasError(
            f"{given.source}: its decoder is a searched one already; give the autoencoder that it was distilled from, "
            "or that it was trained with"
        )
    alone = replace(space, backbone=space.measured())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SearchedAutoencoder(
            alone.to_json(),
            arrangement.to_json(),
            given={"class": given.kind, "config": plain_config(given.model.config)},
            encoder_digest=given.digest,
            latents_mean=given.offset.flatten().tolist(),
            latents_std=(1 / given.gain).flatten().tolist(),
        )
    kept = model.kept.state_dict()
    model.kept.load_state_dict({name: t for name, t in given.model.state_dict().items() if name in kept})
    return model.eval()


def distil_decoder(
    autoencoder: str,
    space: str | Path,
    out: Path,
    settings: DistilSettings,
    *,
    arrangement: Path | None = None,
    start: Path | None = None,
    progress: Callable[[int, Mapping[str, Any]], None] | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Distil a decoder of ``space`` for the encoder of ``autoencoder`` into ``out``; go on where a part of it is there.

    Args:
        autoencoder: of diffusers, by hub id or folder. arrangement: its YAML; the space's baseline by default.
        start: a folder of an earlier distillation for the same encoder and arrangement, whose weights to begin with.

    Returns:
        Path, parameters, steps, the last loss, and whether this process is the main one.

    Raises:
        NasError: if the autoencoder does not fit the space, its class is not known, ``out`` holds something else, or a
            step goes wrong again and again.
    """
    folder = out / DISTIL
    check_replaceable(out, is_begun, "distillation")
    loaded = Space.load(space)
    chosen = Arrangement.load(arrangement) if arrangement is not None else loaded.baseline()
    loaded.check(chosen)
    given = VideoAutoencoder.load(autoencoder)
    model = new_decoder(given, loaded, chosen, settings.seed)
    facts: dict[str, Any] = {
        "encoder": given.digest,
        "space": loaded.fingerprint,
        "arrangement": chosen.key,
        "seed": settings.seed,
        "data": settings.data.model_dump(mode="json", exclude={"cache", "outside"}),
    }
    if start is not None:
        facts["start"] = _begin_with(model, start)
    loop = _trained(model, given, loaded, settings, folder, facts, progress, warn)
    if loop.world.main:
        save_autoencoder(model.to("cpu").eval(), out)
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    last = float(loop.rows[-1]["loss"]) if loop.rows else None
    return {"model": str(out), "parameters": parameters, "steps": loop.step, "loss": last, "main": loop.world.main}


def _trained(
    model: SearchedAutoencoder,
    given: VideoAutoencoder,
    space: Space,
    settings: DistilSettings,
    folder: Path,
    facts: Mapping[str, Any],
    progress: Callable[[int, Mapping[str, Any]], None] | None,
    warn: Callable[[str], None],
) -> Loop[Distil]:
    """Train the model's decoder in place, from what is in the folder; its weights are then the averages."""
    from nas.training.checkpoint import sole_writer

    config = settings.distil
    if config.threads:
        torch.set_num_threads(config.threads)
    world = World.open(config.device, "distil.device")
    try:
        batches = Batches(space, settings.data, config, settings.seed, world)
        stage = Distil(model, given, batches, config, Engine(config, world))
        loop = Loop(stage, folder, facts, settings.seed, warn)
        with sole_writer(folder) if world.main else nullcontext(), world.together():
            loop.run(progress)
        if stage.engine.sharded:
            _fill(model, loop.whole_average())
        else:
            loop.load_average()
        world.wait()
    finally:
        world.close()
    return loop


def _begin_with(model: SearchedAutoencoder, start: Path) -> str:
    """Take up the decoder of an earlier distillation; its digest."""
    from nas.pretrained.hub import model_digest

    earlier = load_autoencoder(start)
    for name in ("encoder_digest", "arrangement", "space"):
        if earlier.config[name] != model.config[name]:
            shown = f" ({earlier.config[name]}, not {model.config[name]})" if name == "encoder_digest" else ""
            what = "encoder" if name == "encoder_digest" else name
            raise NasError(f"--start {start}: was distilled for another {what}{shown}; leave it out, or give that one")
    model.network.load_state_dict(earlier.network.state_dict())
    return model_digest(earlier)


def _fill(model: SearchedAutoencoder, values: Mapping[str, Tensor]) -> None:
    """Whole averages into a network whose weights are split over processes: a copy that is not."""
    from search_spaces.network import VideoNetwork

    network = VideoNetwork(model.space, model.arrangement)
    network.load_state_dict({name.removeprefix("decoder."): value for name, value in values.items()})
    model.network = network
