"""What a package says of itself: which model it is, and what a table predicts that it will cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.export.ends import IMAGES, Part
from nas.model.packages import APP, PREFIX, Clip, DecoderFacts, NetworkFacts, TextFacts
from nas.pretrained.autoencoder import VideoAutoencoder
from nas.tasks.noise import TIMESTEPS
from search_spaces.ends import DECODERS
from search_spaces.space import latent_shape

if TYPE_CHECKING:
    from nas.export.network import Shape
    from nas.model.network import VideoUNet


def facts_of(unet: VideoUNet, predicted: dict[str, str] | None = None, check: Any = None) -> dict[str, str]:
    """Name -> text: space, arrangement, toolkit version, what the check told, and predicted costs where there are."""
    from nas.doctor import version

    space, arrangement = unet.space, unet.arrangement
    layers = "; ".join(f"{name}: {' + '.join(labels)}" for name, labels in arrangement.labels().items() if labels)
    known = {
        "version": version("temporal-nas") or "unknown",
        "space": space.name,
        "arrangement": arrangement.key,
        "layers": layers,
    }
    if check is not None:
        known["check"] = check if isinstance(check, str) else json.dumps(check)
    return {**known, **(predicted or {})}


def predicted_costs(unet: VideoUNet, device: str, tables: Path) -> dict[str, str]:
    """What the device's table predicts for one evaluation at the space's deployment clip, which tables are made of.

    Raises:
        TableError: if there is no such table, or it lacks rows of the space.
    """
    from latency_tables.cost import CostModel
    from latency_tables.lookup import load_table
    from latency_tables.predict import predict
    from search_spaces.planning import load_plan

    table = load_table(device, tables)
    plan = load_plan(unet.space)
    found = predict(CostModel(plan, table, allow_mixed=True), unet.arrangement.labels())
    clip = unet.space.clip("deployment")
    return {
        "clip": f"{clip.frames}x{clip.height}x{clip.width}",
        "device": f"{found.device}/{found.runtime}",
        "latency_ms": f"{found.latency_ms:.3f}",
        "latency_low_ms": f"{found.latency_low_ms:.3f}",
        "latency_high_ms": f"{found.latency_high_ms:.3f}",
        "peak_mb": f"{found.peak_mb:.2f}",
        "source": found.source,
        "evidence": found.audit,
    }


def write(package: Path, facts: dict[str, str]) -> None:
    """Put the facts into the package's user-defined metadata, each under ``temporal_nas.``."""
    from device_profiler.quiet import quiet

    with quiet():
        from coremltools.proto import Model_pb2

    file = next(package.rglob("*.mlmodel"))
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    for name, text in facts.items():
        spec.description.metadata.userDefined[PREFIX + name] = text
    file.write_bytes(spec.SerializeToString())


def network_app(pipeline: Any, model: str, functions: Mapping[str, Shape]) -> dict[str, str]:
    """What an app must know of the network; see ``nas.model.packages``.

    Args:
        functions: name -> the shape in pixels that it takes.
    """
    space = pipeline.unet.space
    levels, guidance = pipeline.plan()
    pipeline.scheduler.set_timesteps(sigmas=levels)  # which may move them, by its own configuration
    clips = {}
    for name, shape in functions.items():
        frames, height, width = latent_shape(space, *shape)
        clips[name] = Clip(pixels=list(shape), latents=[frames, space.latent_channels, height, width])
    facts = NetworkFacts(
        model=model,
        sigmas=pipeline.scheduler.sigmas[:-1].tolist(),
        guidance=guidance,
        renoise=bool(pipeline.scheduler.config.stochastic_sampling),
        timestep_scale=TIMESTEPS,
        fps=space.clip("training").fps,
        functions=clips,
        latents=pipeline.vae is not None,
    )
    return {APP.removeprefix(PREFIX): facts.model_dump_json()}


def end_app(pipeline: Any, model: str, name: str, part: Part) -> dict[str, str]:
    """What an app must know of the text encoder or of the decoder, by the inputs that it was exported with."""
    facts: TextFacts | DecoderFacts
    sizes = part[1][0].shape
    if name == "decoder":
        autoencoder = VideoAutoencoder(pipeline.vae, "vae")
        facts = DecoderFacts(
            model=model,
            tile=[sizes[0], *sizes[2:]],
            overlap=[0, 0, 0] if autoencoder.kind in IMAGES else list(DECODERS["allegro"].overlap),
            time=autoencoder.time,
            space=autoencoder.space,
        )
    else:
        facts = TextFacts(
            model=model,
            length=sizes[1],
            pad=pipeline.tokenizer.pad_token_id,
            unknown=pipeline.tokenizer.unk_token_id,
            tokenizer=pipeline.tokenizer.backend_tokenizer.to_str(),
        )
    return {APP.removeprefix(PREFIX): facts.model_dump_json()}
