"""What a space is made of beside its backbone: clips, autoencoder, text and positions, each checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from search_spaces.blocks import block_spec, complete
from search_spaces.errors import MAX_FRAMES, MAX_LAYERS, MAX_SIZE, SpaceError, plain_text, positive, whole
from search_spaces.families.contract import Scale
from search_spaces.variant import Variant

SMALL = "small"
MAX_FACTOR = 1024  # of an autoencoder
MAX_FPS = 1000.0

#: Who holds the weights of a position's variants: each its own, or all slices of the largest.
APART, SLICED = "apart", "sliced"


@dataclass(frozen=True)
class Clip:
    """A video's size in pixels: ``frames`` at ``fps``, each ``height`` x ``width``."""

    frames: int
    height: int
    width: int
    fps: float

    def __post_init__(self) -> None:
        check_sizes(vars(self), "clip")


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
    """What the text encoder gives for one prompt: ``tokens`` vectors of width ``dim``; ``encoder`` names it.

    Without tokens the network reads no text, and there is no encoder.
    """

    tokens: int
    dim: int
    encoder: str = SMALL

    def __post_init__(self) -> None:
        if self.tokens or self.dim:
            whole(self.tokens, "text.tokens")
            whole(self.dim, "text.dim")
        plain_text(self.encoder, "text.encoder")

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def to_json(self) -> dict[str, Any]:
        """The fields; the encoder where it is not the small one that is trained along."""
        named = {} if self.encoder == SMALL else {"encoder": self.encoder}
        return {"tokens": self.tokens, "dim": self.dim, **named}


@dataclass(frozen=True)
class Position:
    """A place in the backbone that holds between ``least`` and ``most`` layers, each one of ``variants``.

    ``space_scale`` and ``time_scale`` say by how much height and width, and frames, are divided there; see ``Place``.
    ``shelf`` says who holds the variants' weights in a supernet: ``apart``, each its own, or ``sliced``, all slices of
    the largest.
    """

    name: str
    channels: int
    space_scale: Scale
    most: int
    variants: tuple[Variant, ...]
    least: int = 0
    time_scale: Scale = 1
    shelf: str = APART

    def __post_init__(self) -> None:
        where = f"positions.{self.name}"
        whole(self.channels, f"{where}.channels")
        for name in ("space_scale", "time_scale"):
            object.__setattr__(self, name, _scale(getattr(self, name), f"{where}.{name}"))
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
        self._check_shelf(where)

    def _check_shelf(self, where: str) -> None:
        if self.shelf not in (APART, SLICED):
            raise SpaceError(f"{where}.shelf must be {APART} or {SLICED}, but is {self.shelf!r:.60}")
        rigid = [variant.label for variant in self.variants if not block_spec(variant.block).widths]
        if self.shelf == SLICED and rigid:
            raise SpaceError(
                f"{where}.shelf is {SLICED}, but {rigid[0]} is no slice of a larger one of its kind; name blocks with "
                f"widths, or write shelf: {APART}"
            )

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
        usual = {"least": 0, "time_scale": 1, "shelf": APART}
        more = {"least": self.least, "time_scale": _written(self.time_scale), "shelf": self.shelf}
        return {
            "name": self.name,
            "channels": self.channels,
            "downscale": _written(self.space_scale),
            "max_layers": self.most,
            "variants": [variant.label for variant in self.variants],
            **{name: value for name, value in more.items() if value != usual[name]},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Position:
        """The inverse of ``to_json``."""
        fields = dict(data)
        names = {"downscale": "space_scale", "max_layers": "most"}
        given = {names.get(name, name): value for name, value in fields.items()}
        return cls(**{**given, "variants": tuple(Variant.parse(label) for label in given["variants"])})


def _scale(value: Any, where: str) -> Scale:
    """By how much a size is divided: a whole number, or ``1/8`` where it grows eightfold."""
    if isinstance(value, str) and value.startswith("1/") and value[2:].isdigit() and len(value) < 8:
        return Fraction(1, whole(int(value[2:]), where, most=MAX_FACTOR))
    if isinstance(value, Fraction) and value.numerator == 1:
        return value if value.denominator > 1 else 1
    return whole(value, where)


def _written(scale: Scale) -> int | str:
    return scale if isinstance(scale, int) else str(scale)


def check_sizes(fields: Mapping[str, Any], where: str) -> None:
    """A clip's numbers: whole, above 0, and no more than any video has.

    Raises:
        SpaceError: naming the first that is not.
    """
    positive(fields["fps"], f"{where}.fps", MAX_FPS)
    for name in ("frames", "height", "width"):
        whole(fields[name], f"{where}.{name}", most=MAX_FRAMES if name == "frames" else MAX_SIZE)


def check_clip(where: str, clip: Clip, autoencoder: Autoencoder, coarsest: int) -> None:
    """Whether a clip divides by the autoencoder, and its latents by the coarsest scale of the backbone.

    Raises:
        SpaceError: naming a size that does.
    """
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


def latent_shape(space: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, height and width of a clip in pixels.

    Raises:
        SpaceError: naming what a length or a side must divide by, and the nearest that does.
    """
    time, side = space.autoencoder.time, space.autoencoder.space
    down = int(max([1, *(position.space_scale for position in space.positions)])) * side
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
