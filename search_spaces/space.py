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
from search_spaces.ends import decoder_spec, text_encoder_spec
from search_spaces.errors import MAX_FRAMES, MAX_SIZE, SpaceError, plain_text, positive, unknown, whole
from search_spaces.families import Backbone, family_of
from search_spaces.families.contract import Layout
from search_spaces.reading import UnreadableError, parse_yaml, read_text
from search_spaces.variant import Variant
from search_spaces.workload import Workload

if TYPE_CHECKING:
    from numpy.random import Generator

SMALL = "small"
SPACES = Path(__file__).parent / "spaces"

#: Options of one position that may be enumerated; beyond it nothing that lists them would end.
MAX_OPTIONS = 1_000_000
MAX_LAYERS = 64  # at one position
MAX_FACTOR = 1024  # of an autoencoder
MAX_FPS = 1000.0


@dataclass(frozen=True)
class Clip:
    """A video's size in pixels: ``frames`` at ``fps``, each ``height`` x ``width``."""

    frames: int
    height: int
    width: int
    fps: float

    def __post_init__(self) -> None:
        _check_sizes(vars(self), "clip")


@dataclass(frozen=True)
class Autoencoder:
    """By how much the autoencoder divides time and space; 1 and 1 for a space of pixels.

    ``causal``: the first frame becomes a latent of its own, so a clip has 1 + a multiple of ``time`` frames.
    ``decoder`` names the half that makes frames of latents (``ends.DECODERS``); empty where there is none, or where
    its cost is not asked for.
    """

    time: int = 1
    space: int = 1
    decoder: str = ""
    causal: bool = False

    def __post_init__(self) -> None:
        whole(self.time, "autoencoder.time", most=MAX_FACTOR)
        whole(self.space, "autoencoder.space", most=MAX_FACTOR)
        plain_text(self.decoder, "autoencoder.decoder")
        if not isinstance(self.causal, bool):
            raise SpaceError(f"autoencoder.causal must be true or false, but is {self.causal!r}")

    def to_json(self) -> dict[str, Any]:
        """The fields; what is not stated is left out."""
        more = {**({"decoder": self.decoder} if self.decoder else {}), **({"causal": True} if self.causal else {})}
        return {"time": self.time, "space": self.space, **more}

    def latent_frames(self, frames: int) -> int:
        """Latents of a clip of so many frames."""
        return 1 + (frames - 1) // self.time if self.causal else frames // self.time

    def pixel_frames(self, latents: int) -> int:
        """Frames of a clip of so many latents."""
        return 1 + (latents - 1) * self.time if self.causal else latents * self.time

    def divides(self, frames: int) -> bool:
        """Whether a clip of so many frames becomes whole latents."""
        return frames > 0 and self.pixel_frames(self.latent_frames(frames)) == frames


@dataclass(frozen=True)
class Text:
    """What the text encoder gives for one prompt: ``tokens`` vectors of width ``dim``; ``encoder`` names it."""

    tokens: int
    dim: int
    encoder: str = SMALL

    def __post_init__(self) -> None:
        whole(self.tokens, "text.tokens")
        whole(self.dim, "text.dim")
        plain_text(self.encoder, "text.encoder")

    def to_json(self) -> dict[str, Any]:
        """The fields; the encoder where it is not the small one that is trained along."""
        named = {} if self.encoder == SMALL else {"encoder": self.encoder}
        return {"tokens": self.tokens, "dim": self.dim, **named}


@dataclass(frozen=True)
class Position:
    """A place in the backbone that holds between ``least`` and ``most`` layers, each one of ``variants``.

    ``space_scale`` and ``time_scale`` say by how much height and width, and frames, are divided there.
    """

    name: str
    channels: int
    space_scale: int
    most: int
    variants: tuple[Variant, ...]
    least: int = 0
    time_scale: int = 1

    def __post_init__(self) -> None:
        where = f"positions.{self.name}"
        whole(self.channels, f"{where}.channels")
        whole(self.space_scale, f"{where}.space_scale")
        whole(self.time_scale, f"{where}.time_scale")
        whole(self.most, f"{where}.max_layers", least=0, most=MAX_LAYERS)
        whole(self.least, f"{where}.least", least=0, most=self.most)
        if self.most and not self.variants:
            raise SpaceError(f"{where}.variants is empty, but max_layers is {self.most}; name some or set it to 0")
        full = []
        for index, variant in enumerate(self.variants):
            try:
                full.append(complete(variant, self.channels))
            except SpaceError as error:
                raise SpaceError(f"{where}.variants[{index}]: {error}") from None
            if full[-1] in full[:-1]:
                raise SpaceError(f"{where}.variants[{index}]: {full[-1].label} stands there already; remove one")
        object.__setattr__(self, "variants", tuple(full))

    @property
    def lengths(self) -> range:
        """How many layers may stand there."""
        return range(self.least, self.most + 1)

    @property
    def size(self) -> int:
        """Number of options: ordered selections of ``least`` to ``most`` variants, repeats allowed."""
        return sum(len(self.variants) ** length for length in self.lengths)

    def to_json(self) -> dict[str, Any]:
        """The definition by the names that it has had since 0.1; what is usual is left out."""
        more = {"least": self.least, "time_scale": self.time_scale}
        return {
            "name": self.name,
            "channels": self.channels,
            "downscale": self.space_scale,
            "max_layers": self.most,
            "variants": [variant.label for variant in self.variants],
            **{name: value for name, value in more.items() if value != {"least": 0, "time_scale": 1}[name]},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Position:
        """The inverse of ``to_json``."""
        fields = dict(data)
        names = {"downscale": "space_scale", "max_layers": "most"}
        given = {names.get(name, name): value for name, value in fields.items()}
        return cls(**{**given, "variants": tuple(Variant.parse(label) for label in given["variants"])})


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
        coarsest = max((place.space_scale for place in layout.places), default=1)
        self._check_ends()
        for clip_name in ("deployment", "training"):  # an absent training clip is the deployment clip: name that one
            _check_clip(f"clips.{clip_name}", self.clips[clip_name], self.autoencoder, coarsest)
        self._check_places(layout)

    def _check_places(self, layout: Layout) -> None:
        places = {place.name: place for place in layout.places}
        for position in self.positions:
            frames = self.latent_shape()[0]
            if frames % position.time_scale or self.latent_shape("training")[0] % position.time_scale:
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
        if encoder.dim and (encoder.dim, encoder.tokens) != (self.text.dim, self.text.tokens):
            raise SpaceError(
                f"text.encoder {self.text.encoder} gives {encoder.tokens} vectors of width {encoder.dim}, but the "
                f"space has {self.text.tokens} of width {self.text.dim}; correct text.tokens or name another encoder"
            )
        if self.autoencoder.decoder:
            decoder = decoder_spec(self.autoencoder.decoder)
            stated = (self.autoencoder.time, self.autoencoder.space, self.latent_channels)
            if self.autoencoder.causal:
                raise SpaceError(
                    f"autoencoder.decoder {self.autoencoder.decoder} makes {decoder.time} frames of every latent, but "
                    "the space says causal: the first frame alone; leave one of the two out"
                )
            if stated != (decoder.time, decoder.space, decoder.channels):
                raise SpaceError(
                    f"autoencoder.decoder {self.autoencoder.decoder} multiplies time by {decoder.time} and space by "
                    f"{decoder.space} and reads {decoder.channels} channels, but the space states {stated}"
                )

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

    def mutate(self, arrangement: Arrangement, rng: Generator) -> Arrangement:
        """A random neighbour: one layer added, removed or changed at one random position. Never the same again."""
        self.check(arrangement)
        movable = [position for position in self.positions if position.size > 1]
        if not movable:
            raise SpaceError(f"space {self.name} has one arrangement only; nothing can be mutated")
        position = movable[int(rng.integers(len(movable)))]
        neighbours = _neighbours(arrangement.at(position.name), position)
        return arrangement.replace(position.name, neighbours[int(rng.integers(len(neighbours)))])

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
        place = self.position(position)
        frames, _, height, width = self.latent_shape(clip)
        return frames // place.time_scale, place.channels, height // place.space_scale, width // place.space_scale

    def workload(
        self, position: str | Position, variant: Variant, precision: str, clip: str = "deployment"
    ) -> Workload:
        """The workload of one layer at a position, batch 1."""
        place = self.position(position)
        full = complete(variant, place.channels)
        frames, channels, height, width = self.position_shape(place, clip)
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
            context_dim=self.text.dim if "context" in reads else 0,
            embedding_dim=self.backbone.layout.embedding if "embedding" in reads else 0,
        )

    def backbone_workload(self, precision: str, clip: str = "deployment") -> Workload:
        """The workload of the bare backbone, batch 1."""
        return self._whole("backbone", self.backbone_id, precision, clip)

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
        frames, _, height, width = self.latent_shape(clip)
        return tuple(
            Workload(
                "spatial",
                (),
                channels=part.channels,
                frames=frames // part.time_scale,
                height=height // part.space_scale,
                width=width // part.space_scale,
                precision=precision,
                context_tokens=self.text.tokens,
                context_dim=self.text.dim,
                name=f"{self.backbone_id}.{part.name}",
            )
            for part in self.backbone.layout.parts
        )

    def ends(self, precision: str, clip: str = "deployment") -> tuple[Workload, ...]:
        """What a video costs beside the network: the text encoder's workload, and the decoder's where there is one."""
        found = (self.text_encoder_workload(precision), self.decoder_workload(precision, clip))
        return tuple(workload for workload in found if workload is not None)

    def network_workload(self, arrangement: Arrangement, precision: str, clip: str = "deployment") -> Workload:
        """The workload of the backbone with all layers of an arrangement, batch 1."""
        self.check(arrangement)
        return self._whole("network", f"{self.name}:{arrangement.key}", precision, clip)

    def workloads(self, precision: str, clip: str = "deployment") -> tuple[Workload, ...]:
        """All that must be measured to cost any arrangement: the backbone, then each distinct workload once."""
        found = {self.backbone_workload(precision, clip): None}
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


def list_spaces() -> list[str]:
    """Names of the spaces that ship with the package."""
    return sorted(path.stem for path in SPACES.glob("*.yaml"))


def _neighbours(layers: tuple[Variant, ...], position: Position) -> list[tuple[Variant, ...]]:
    """Every option one addition, removal or change away, without repeats."""
    found: dict[tuple[Variant, ...], None] = {}
    for at in range(len(layers) + 1):
        for variant in position.variants:
            if len(layers) < position.most:
                found[(*layers[:at], variant, *layers[at:])] = None
            if at < len(layers):
                found[(*layers[:at], variant, *layers[at + 1 :])] = None
        if at < len(layers) and len(layers) > position.least:
            found[(*layers[:at], *layers[at + 1 :])] = None
    return [option for option in found if option != layers]


def _check_sizes(fields: Mapping[str, Any], where: str) -> None:
    """A clip's numbers: whole, above 0, and no more than any video has.

    Raises:
        SpaceError: naming the first that is not.
    """
    positive(fields["fps"], f"{where}.fps", MAX_FPS)
    for name in ("frames", "height", "width"):
        whole(fields[name], f"{where}.{name}", most=MAX_FRAMES if name == "frames" else MAX_SIZE)


def _check_clip(where: str, clip: Clip, autoencoder: Autoencoder, coarsest: int) -> None:
    if autoencoder.causal and not autoencoder.divides(clip.frames):
        raise SpaceError(
            f"{where}.frames must be 1 + a multiple of {autoencoder.time} (autoencoder.time, causal), but is "
            f"{clip.frames}; choose {autoencoder.pixel_frames(autoencoder.latent_frames(clip.frames))}"
        )
    if not autoencoder.causal and clip.frames % autoencoder.time:
        raise SpaceError(
            f"{where}.frames must be a multiple of {autoencoder.time} (autoencoder.time), but is {clip.frames}; "
            f"choose {clip.frames // autoencoder.time * autoencoder.time or autoencoder.time}"
        )
    stride = autoencoder.space * coarsest
    for side in ("height", "width"):
        value = getattr(clip, side)
        if value % stride:
            raise SpaceError(
                f"{where}.{side} must be a multiple of {stride} (autoencoder.space={autoencoder.space} times the "
                f"backbone's {coarsest}), but is {value}; choose {value // stride * stride or stride}"
            )


# Reading YAML -------------------------------------------------------------------------------------------------------


def _read(path: Path, shown: str) -> Space:
    try:
        return _parse(parse_yaml(read_text(path)), path)
    except (SpaceError, UnreadableError) as error:
        raise SpaceError(f"{shown}: {error}") from None


def _parse(data: Any, source: Path) -> Space:
    fields = _mapping(
        data, "", ("name", "backbone", "text", "clips", "positions"), ("description", "autoencoder", "baseline")
    )
    name = fields["name"]
    if not isinstance(name, str) or not name.replace("_", "").isalnum() or len(name) > 100:
        raise SpaceError(f"name must be letters, digits and _ (it becomes part of table keys), but is {name!r}")
    backbone = _parse_backbone(fields["backbone"])
    layout = backbone.layout
    text = _mapping(fields["text"], "text", ("tokens",), ("encoder",))
    autoencoder = _mapping(fields.get("autoencoder", {}), "autoencoder", (), ("time", "space", "decoder", "causal"))
    clips = _mapping(fields["clips"], "clips", ("deployment",), ("training",))
    parsed = {key: _parse_clip(value, f"clips.{key}") for key, value in clips.items()}
    space = Space(
        name=name,
        description=plain_text(fields.get("description", ""), "description").strip(),
        backbone=backbone,
        positions=_parse_positions(fields["positions"], layout),
        clips={"training": parsed.get("training", parsed["deployment"]), "deployment": parsed["deployment"]},
        text=Text(text["tokens"], layout.context_dim, text.get("encoder", SMALL)),
        latent_channels=layout.in_channels,
        autoencoder=Autoencoder(**autoencoder),
        source=source,
    )
    if "baseline" not in fields:
        return space
    stated = _mapping(fields["baseline"], "baseline", (), tuple(position.name for position in space.positions))
    for where, layers in stated.items():
        if not isinstance(layers, list):
            raise SpaceError(f"baseline.{where} must be a list of variants, but is {layers!r:.60}")
    try:
        labels = {where: [Variant.parse(label) for label in layers] for where, layers in stated.items()}
        return replace(space, stated_baseline=space.arrange(labels))
    except SpaceError as error:
        raise SpaceError(f"baseline: {error}") from None


def _parse_backbone(data: Any) -> Backbone:
    fields = _mapping({"name": data} if isinstance(data, str) else data, "backbone", ("name",), ("config",))
    name = plain_text(fields["name"], "backbone.name")
    try:
        family = family_of(name)
    except SpaceError as error:
        raise SpaceError(f"backbone.name: {error}") from None
    preset = family.presets[name]
    changes = _mapping(fields.get("config") or {}, "backbone.config", (), (*preset.config, *preset.extras))
    backbone = Backbone(name, {**preset.config, **changes})
    try:
        family.layout(backbone.config)
    except SpaceError as error:
        raise SpaceError(f"backbone.config: {error}") from None
    return backbone


def _parse_clip(data: Any, where: str) -> Clip:
    fields = _mapping(data, where, ("frames", "height", "width", "fps"))
    _check_sizes(fields, where)
    return Clip(**fields)


def _parse_positions(data: Any, layout: Layout) -> tuple[Position, ...]:
    places = {place.name: place for place in layout.places}
    fields = _mapping(data, "positions", (), tuple(places), kind="position")
    if not fields:
        raise SpaceError(f"positions is empty; name at least one of {', '.join(places)}")
    positions = []
    for place in (place for name, place in places.items() if name in fields):
        where = f"positions.{place.name}"
        entry = dict(fields[place.name]) if isinstance(fields[place.name], Mapping) else fields[place.name]
        if isinstance(entry, dict) and "most" in entry and "max_layers" not in entry:
            entry["max_layers"] = entry.pop("most")
        entry = _mapping(entry, where, ("max_layers", "variants"), ("least",))
        if not isinstance(entry["variants"], list):
            raise SpaceError(f"{where}.variants must be a list, but is {entry['variants']!r}")
        variants = []
        for index, label in enumerate(entry["variants"]):
            try:
                variants.append(Variant.parse(label))
            except SpaceError as error:
                raise SpaceError(f"{where}.variants[{index}]: {error}") from None
        positions.append(
            Position(
                place.name,
                place.channels,
                place.space_scale,
                entry["max_layers"],
                tuple(variants),
                entry.get("least", 0),
                place.time_scale,
            )
        )
    return tuple(positions)


def _mapping(
    data: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = (), kind: str = "key"
) -> dict[str, Any]:
    """The mapping itself, if it has all required keys and no unknown ones."""
    dot, at = (f"{where}.", where) if where else ("", "the file")
    if not isinstance(data, Mapping):
        raise SpaceError(f"{at} must map {', '.join(required + optional)} to values, but is {data!r:.60}")
    for key in data:
        if key not in required + optional:
            raise SpaceError(f"{dot}{key}: {unknown(kind, key, required + optional)}")
    missing = [key for key in required if key not in data]
    if missing:
        raise SpaceError(f"{at} lacks {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}")
    return dict(data)


def latent_shape(space: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, height and width of a clip in pixels.

    Raises:
        SpaceError: naming what a length or a side must divide by, and the nearest that does.
    """
    time, side = space.autoencoder.time, space.autoencoder.space
    down = max((position.space_scale for position in space.positions), default=1) * side
    if space.autoencoder.causal and not space.autoencoder.divides(frames):
        near = 1 + max(0, round((frames - 1) / time)) * time
        raise SpaceError(
            f"frames must be 1 + a multiple of {time} for this model, but is {frames}; the nearest is {near}"
        )
    unit = 1 if space.autoencoder.causal else time
    for name, value, by in (("frames", frames, unit), ("height", height, down), ("width", width, down)):
        if value < 1 or value % by:
            near = max(by, round(value / by) * by)
            raise SpaceError(f"{name} must be a multiple of {by} for this model, but is {value}; the nearest is {near}")
    return space.autoencoder.latent_frames(frames), height // side, width // side
