"""A space: a backbone, its positions with what each allows, and the clips from which every shape is derived."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.arrangement import Arrangement
from search_spaces.blocks import block_spec, complete
from search_spaces.definition import parse_definition
from search_spaces.ends import check_decoder, decoder_spec, text_encoder_spec
from search_spaces.errors import MAX_OPTIONS, SpaceError, unknown
from search_spaces.families import Backbone
from search_spaces.families.contract import Layout
from search_spaces.parts import Autoencoder, Clip, Position, Text, check_clip, latent_shape
from search_spaces.plan import SPACES
from search_spaces.reading import UnreadableError, parse_yaml, read_text
from search_spaces.variant import Variant
from search_spaces.workload import Workload

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["SPACES", "Autoencoder", "Clip", "Position", "Space", "Text", "latent_shape", "list_spaces"]


@dataclass(frozen=True)
class Space:
    """Everything that may be chosen, with the shapes at which it is trained and measured.

    Load one with ``Space.load("tiny")`` or ``Space.load("my_space.yaml")``. A space is checked when it is made: names
    exist, heads divide channels, clips divide by the autoencoder and by the backbone's strides.

    Raises:
        SpaceError: naming the field, the rule, the values and the remedy.
    """

    name: str
    backbone: Backbone
    positions: tuple[Position, ...]
    clips: Mapping[str, Clip] = field(hash=False)
    text: Text
    latent_channels: int
    autoencoder: Autoencoder = Autoencoder()
    description: str = ""
    source: Path | None = field(default=None, compare=False)
    stated_baseline: Arrangement | None = None

    def __post_init__(self) -> None:
        if set(self.clips) != {"training", "deployment"}:
            raise SpaceError(f"clips must be training and deployment, but are {', '.join(self.clips) or 'none'}")
        layout = self.backbone.layout
        if (self.latent_channels, self.text.dim) != (layout.in_channels, layout.context_dim):
            raise SpaceError(
                f"backbone {self.backbone.name} reads {layout.in_channels} channels and text of width "
                f"{layout.context_dim}, but latent_channels is {self.latent_channels} and text.dim {self.text.dim}"
            )
        order = [place.name for place in layout.places]
        names = [position.name for position in self.positions]
        for name in names:
            if name not in order:
                raise SpaceError(f"positions: {unknown('position', name, order)}")
        if names != [name for name in order if name in names]:
            raise SpaceError(f"positions must be named once each, in execution order: {', '.join(order)}")
        coarsest = int(max([1, *(place.space_scale for place in layout.places)]))
        self._check_ends()
        for clip_name in ("deployment", "training"):  # an absent training clip is the deployment clip: name that one
            check_clip(f"clips.{clip_name}", self.clips[clip_name], self.autoencoder, coarsest)
        self._check_places(layout)

    def _check_places(self, layout: Layout) -> None:
        places = {place.name: place for place in layout.places}
        for position in self.positions:
            alone = int(layout.causal)
            frames = self.latent_shape()[0] - alone
            if frames % position.time_scale or (self.latent_shape("training")[0] - alone) % position.time_scale:
                raise SpaceError(
                    f"positions.{position.name} divides time by {position.time_scale}, which does not divide the "
                    f"clips' {frames} (deployment) and {self.latent_shape('training')[0]} (training) frames; change "
                    "clips.*.frames"
                )
            place = places[position.name]
            if position.time_scale != place.time_scale:
                raise SpaceError(
                    f"positions.{position.name}.time_scale must be {place.time_scale}, as backbone "
                    f"{self.backbone.name} has it, but is {position.time_scale}"
                )
            for variant in position.variants:
                if place.by_frame and block_spec(variant.block).across:
                    raise SpaceError(
                        f"positions.{position.name}: {variant.label} looks at other frames, but backbone "
                        f"{self.backbone.name} runs frame by frame there; name another block"
                    )
                if "embedding" in block_spec(variant.block).reads and not layout.embedding:
                    raise SpaceError(
                        f"positions.{position.name}: {variant.label} reads the time embedding, which backbone "
                        f"{self.backbone.name} does not hand out; name another block"
                    )
        if self.stated_baseline is not None:
            try:
                self.check(self.stated_baseline)
            except SpaceError as error:
                raise SpaceError(f"baseline: {error}") from None

    def _check_ends(self) -> None:
        encoder = text_encoder_spec(self.text.encoder)
        if self.text and encoder.dim and (encoder.dim, encoder.tokens) != (self.text.dim, self.text.tokens):
            raise SpaceError(
                f"text.encoder {self.text.encoder} gives {encoder.tokens} vectors of width {encoder.dim}, but the "
                f"space has {self.text.tokens} of width {self.text.dim}; correct text.tokens or name another encoder"
            )
        if self.autoencoder.decoder:
            check_decoder(self.autoencoder, self.latent_channels)

    @classmethod
    def load(cls, name_or_path: str | Path | Space) -> Space:
        """A space that ships with the package, by name, or anybody's, by the path of its YAML.

        Raises:
            SpaceError: if there is no such space or file, or its content is wrong; the message starts with the file.
        """
        if isinstance(name_or_path, Space):
            return name_or_path
        text = str(name_or_path)
        if text in list_spaces():
            return _read(SPACES / f"{text}.yaml", f"{text}.yaml")
        if text.endswith((".yaml", ".yml")):
            return _read(Path(text), text)
        raise SpaceError(f"{unknown('space', text, list_spaces())} A space of your own is given by its .yaml path.")

    @cached_property
    def fingerprint(self) -> str:
        """12 hex characters of the SHA-256 over the definition; prose and file name do not count."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """The definition, complete: defaults filled in, derived values included."""
        return {
            "name": self.name,
            "backbone": {"name": self.backbone.name, "config": dict(self.backbone.config)},
            "latent_channels": self.latent_channels,
            "autoencoder": self.autoencoder.to_json(),
            "text": self.text.to_json(),
            "clips": {name: vars(clip) for name, clip in self.clips.items()},
            "positions": [position.to_json() for position in self.positions],
            **({"baseline": self.stated_baseline.to_json()} if self.stated_baseline is not None else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Space:
        """The inverse of ``to_json``: a definition that was stored with a model or a run.

        Raises:
            SpaceError: if a field is missing or wrong.
        """
        try:
            return cls(
                name=data["name"],
                backbone=Backbone(data["backbone"]["name"], dict(data["backbone"]["config"])),
                positions=tuple(Position.from_json(item) for item in data["positions"]),
                clips={name: Clip(**clip) for name, clip in data["clips"].items()},
                text=Text(**data["text"]),
                latent_channels=data["latent_channels"],
                autoencoder=Autoencoder(**data["autoencoder"]),
                stated_baseline=Arrangement.from_json(data["baseline"]) if "baseline" in data else None,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, SpaceError):
                raise
            raise SpaceError(
                f"this is no stored space ({type(error).__name__}: {error}); store Space.to_json()"
            ) from None

    # Positions and arrangements ---------------------------------------------------------------------------------

    def position(self, name: str | Position) -> Position:
        """A position by name."""
        if isinstance(name, Position):
            return name
        try:
            return self._by_name[name]
        except KeyError:
            raise SpaceError(f"space {self.name}: {unknown('position', name, self._by_name)}") from None

    @cached_property
    def _by_name(self) -> dict[str, Position]:
        return {position.name: position for position in self.positions}

    @cached_property
    def _options(self) -> dict[str, tuple[tuple[Variant, ...], ...]]:
        return {}

    def options(self, position: str | Position) -> tuple[tuple[Variant, ...], ...]:
        """All that a position may hold, by length (nothing first, where that is allowed), then in product order of
        ``variants``."""
        place = self.position(position)
        if place.name not in self._options:
            if place.size > MAX_OPTIONS:
                raise SpaceError(
                    f"positions.{place.name} has {place.size:,} options, over {MAX_OPTIONS:,}; "
                    "lower max_layers or name fewer variants"
                )
            self._options[place.name] = tuple(
                option for length in place.lengths for option in product(place.variants, repeat=length)
            )
        return self._options[place.name]

    def size(self) -> int:
        """Number of arrangements, exactly."""
        return math.prod(position.size for position in self.positions)

    def arrange(self, layers: Mapping[str, Iterable[Variant | str]]) -> Arrangement:
        """An arrangement from what stands where; positions left out stay empty, parameters left out get defaults.

        Raises:
            SpaceError: if a position is unknown or does not allow what is asked for.
        """
        chosen = dict(layers)
        for name in chosen:
            self.position(name)
        filled = []
        for position in self.positions:
            wanted = [Variant.parse(item) if isinstance(item, str) else item for item in chosen.get(position.name, ())]
            filled.append((position.name, tuple(complete(variant, position.channels) for variant in wanted)))
        arrangement = Arrangement(self.name, tuple(filled))
        self.check(arrangement)
        return arrangement

    def empty(self) -> Arrangement:
        """No layer anywhere: the bare frame. It lies in the space only where every position may hold none."""
        return Arrangement(self.name, tuple((position.name, ()) for position in self.positions))

    def baseline(self) -> Arrangement:
        """What the space compares with: stated in its YAML, or else the least of every position, in its first variant.

        Where every position may hold nothing, that is the empty arrangement.
        """
        if self.stated_baseline is not None:
            return self.stated_baseline
        least = tuple((position.name, position.variants[:1] * position.least) for position in self.positions)
        return Arrangement(self.name, least)

    def sample(self, rng: Generator) -> Arrangement:
        """A random arrangement: at each position first a number of layers, then each layer, all uniform.

        Drawing among options uniformly would fill almost every position, since most options are the long ones.
        """
        layers = []
        for position in self.positions:
            length = position.least + int(rng.integers(len(position.lengths)))
            chosen = tuple(position.variants[int(rng.integers(len(position.variants)))] for _ in range(length))
            layers.append((position.name, chosen))
        return Arrangement(self.name, tuple(layers))

    def check(self, arrangement: Arrangement) -> None:
        """Whether the arrangement lies in this space.

        Raises:
            SpaceError: if it belongs to another space, or a position holds too much or what it does not allow.
        """
        if arrangement.space != self.name:
            raise SpaceError(f"this arrangement is of space {arrangement.space!r}, but the space is {self.name!r}")
        names = tuple(self._by_name)
        if arrangement.positions != names:
            for name in arrangement.positions:
                self.position(name)
            raise SpaceError(
                f"an arrangement of {self.name} names every position in execution order ({', '.join(names)}), but this "
                f"names {', '.join(arrangement.positions) or 'none'}; write [] where there is no layer"
            )
        for position in self.positions:
            layers = arrangement.at(position.name)
            if len(layers) > position.most:
                raise SpaceError(f"{position.name}: {len(layers)} layers, over max_layers={position.most}; drop some")
            if len(layers) < position.least:
                raise SpaceError(f"{position.name}: {len(layers)} layers, under least={position.least}; add some")
            for variant in layers:
                if variant not in position.variants:
                    allowed = ", ".join(other.label for other in position.variants) or "nothing"
                    raise SpaceError(f"{position.name}: {variant.label} is not allowed here; allowed: {allowed}")

    # Shapes and workloads ----------------------------------------------------------------------------------------

    def clip(self, name: str = "deployment") -> Clip:
        """A clip by name: ``training`` or ``deployment``."""
        if name not in self.clips:
            raise SpaceError(f"space {self.name}: {unknown('clip', name, self.clips)}")
        return self.clips[name]

    def latent_shape(self, clip: str = "deployment") -> tuple[int, int, int, int]:
        """What the backbone reads for a clip: ``(T, C, H, W)``."""
        pixels, factor = self.clip(clip), self.autoencoder
        return (
            factor.latent_frames(pixels.frames),
            self.latent_channels,
            pixels.height // factor.space,
            pixels.width // factor.space,
        )

    def position_shape(self, position: str | Position, clip: str = "deployment") -> tuple[int, int, int, int]:
        """The feature map at a position: ``(T, C, H, W)``."""
        place, (frames, _, height, width) = self.position(position), self.latent_shape(clip)
        return (
            self.backbone.layout.frames(place.time_scale, frames),
            place.channels,
            height // place.space_scale,
            width // place.space_scale,
        )

    def measured(self) -> Backbone:
        """The backbone without what it is only trained with: the one that is measured and deployed."""
        return Backbone(self.backbone.name, {**self.backbone.config, **self.backbone.preset.measured})

    def calls(self, position: str | Position, clip: str = "deployment") -> int:
        """How often a layer there runs for one evaluation: once, or frame by frame."""
        return self.position_shape(position, clip)[0] if self._by_frame[self.position(position).name] else 1

    @cached_property
    def _by_frame(self) -> dict[str, bool]:
        return {place.name: place.by_frame for place in self.backbone.layout.places}

    def workload(
        self, position: str | Position, variant: Variant, precision: str, clip: str = "deployment"
    ) -> Workload:
        """The workload of one layer at a position, batch 1; of one frame where the network runs frame by frame."""
        place = self.position(position)
        full = complete(variant, place.channels)
        frames, channels, height, width = self.position_shape(place, clip)
        frames = 1 if self._by_frame[place.name] else frames
        reads = block_spec(full.block).reads
        return Workload(
            full.block,
            full.params,
            channels=channels,
            frames=frames,
            height=height,
            width=width,
            precision=precision,
            context_tokens=self.text.tokens if "context" in reads else 0,
            context_dim=self.backbone.layout.told_dim if "context" in reads else 0,
            embedding_dim=self.backbone.layout.embedding if "embedding" in reads else 0,
        )

    def backbone_workload(self, precision: str, clip: str = "deployment") -> Workload:
        """The workload of the bare backbone, batch 1; where it is never run in one piece, of its first part."""
        if self.backbone.layout.in_parts:
            return self.spatial_workloads(precision, clip)[0]
        return self._whole("backbone", self.backbone_id, precision, clip)

    def frame_workloads(self, precision: str, clip: str = "deployment") -> tuple[tuple[Workload, int], ...]:
        """All that the bare backbone costs: the workload and how often it runs, by ``backbone_workload`` first."""
        layout = self.backbone.layout
        if not layout.in_parts:
            return ((self.backbone_workload(precision, clip), 1),)
        frames = self.latent_shape(clip)[0]
        calls = [layout.frames(part.time_scale, frames) if part.by_frame else 1 for part in layout.parts]
        return tuple(zip(self.spatial_workloads(precision, clip), calls, strict=True))

    def text_encoder_workload(self, precision: str) -> Workload:
        """The workload of encoding one prompt."""
        return Workload(
            "text_encoder",
            (),
            channels=self.text.dim,
            frames=1,
            height=1,
            width=self.text.tokens,
            precision=precision,
            context_tokens=self.text.tokens,
            context_dim=self.text.dim,
            name=self.text.encoder,
        )

    def decoder_workload(self, precision: str, clip: str = "deployment") -> Workload | None:
        """The workload of one call of the decoder, a tile of the clip's latents; None where the space has none."""
        if not self.autoencoder.decoder:
            return None
        frames, channels, height, width = self.latent_shape(clip)
        tile = decoder_spec(self.autoencoder.decoder).tile_of(frames, height, width)
        return Workload(
            "decoder",
            (),
            channels=channels,
            frames=tile[0],
            height=tile[1],
            width=tile[2],
            precision=precision,
            name=self.autoencoder.decoder,
        )

    def decoder_calls(self, clip: str = "deployment") -> int:
        """How many calls of ``decoder_workload`` a whole clip takes; 0 without a decoder."""
        if not self.autoencoder.decoder:
            return 0
        frames, _, height, width = self.latent_shape(clip)
        return decoder_spec(self.autoencoder.decoder).calls(frames, height, width)

    def spatial_workloads(self, precision: str, clip: str = "deployment") -> tuple[Workload, ...]:
        """What the backbone is made of, part by part in execution order; none where it is not known in parts."""
        _, _, *size = self.latent_shape(clip)
        layout, found = self.backbone.layout, []
        for part in layout.parts:
            frames, channels, height, width = layout.shape(part, self.latent_shape(clip)[0], *size)
            found.append(
                Workload(
                    "spatial",
                    (),
                    channels=channels,
                    frames=1 if part.by_frame else frames,
                    height=height,
                    width=width,
                    precision=precision,
                    context_tokens=self.text.tokens,
                    context_dim=self.text.dim,
                    name=f"{self.backbone_id}.{part.name}",
                )
            )
        return tuple(found)

    def ends(self, precision: str, clip: str = "deployment") -> tuple[Workload, ...]:
        """What a video costs beside the network: the text encoder's workload, and the decoder's where there is one."""
        text = self.text_encoder_workload(precision) if self.text else None
        found = (text, self.decoder_workload(precision, clip))
        return tuple(workload for workload in found if workload is not None)

    def network_workload(self, arrangement: Arrangement, precision: str, clip: str = "deployment") -> Workload:
        """The workload of the backbone with all layers of an arrangement, batch 1."""
        self.check(arrangement)
        return self._whole("network", f"{self.name}:{arrangement.key}", precision, clip)

    def network_workloads(
        self, arrangement: Arrangement, precision: str, clip: str = "deployment"
    ) -> tuple[tuple[Workload, int], ...]:
        """All that one evaluation of a whole network runs, and how often: itself once, or each of its parts."""
        whole = self.network_workload(arrangement, precision, clip)
        if not self.backbone.layout.in_parts:
            return ((whole, 1),)
        return tuple(
            (replace(part, block="network", name=f"{whole.name}.{part.name.rpartition('.')[2]}"), calls)
            for part, calls in self.frame_workloads(precision, clip)
        )

    def workloads(self, precision: str, clip: str = "deployment") -> tuple[Workload, ...]:
        """All that must be measured to cost any arrangement: the backbone, then each distinct workload once."""
        found: dict[Workload, None] = {workload: None for workload, _ in self.frame_workloads(precision, clip)}
        for position in self.positions:
            for variant in position.variants if position.most else ():
                found[self.workload(position, variant, precision, clip)] = None
        return tuple(found)

    @property
    def backbone_id(self) -> str:
        """What keys call the backbone: its name; with a hash once the space changes its config or text length."""
        preset = self.backbone.preset
        if (dict(self.backbone.config), self.text.tokens) == (dict(preset.config), preset.tokens):
            return self.backbone.name
        definition = json.dumps([self.backbone.config, self.text.tokens], sort_keys=True, separators=(",", ":"))
        return f"{self.backbone.name}-{hashlib.sha256(definition.encode()).hexdigest()[:6]}"

    def _whole(self, kind: str, name: str, precision: str, clip: str) -> Workload:
        frames, channels, height, width = self.latent_shape(clip)
        return Workload(
            kind,
            (),
            channels=channels,
            frames=frames,
            height=height,
            width=width,
            precision=precision,
            context_tokens=self.text.tokens,
            context_dim=self.text.dim,
            name=name,
        )


def _read(path: Path, shown: str) -> Space:
    try:
        fields, baseline = parse_definition(parse_yaml(read_text(path)))
        space = Space(**fields, source=path)
        if baseline is None:
            return space
        try:
            return replace(space, stated_baseline=space.arrange(baseline))
        except SpaceError as error:
            raise SpaceError(f"baseline: {error}") from None
    except (SpaceError, UnreadableError) as error:
        raise SpaceError(f"{shown}: {error}") from None


def list_spaces() -> list[str]:
    """Names of the spaces that ship with the package."""
    return sorted(path.stem for path in SPACES.glob("*.yaml"))
