"""A model sampled from its Core ML packages alone, as an app does it: what it needs stands in their metadata.

Core ML runs them on macOS; elsewhere the evaluator does (``device_profiler.evaluator``), in float16 as declared. No
torch model is loaded. ``docs/model.md`` has the order of calls.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from nas.errors import NasError
from nas.model.levels import plan_levels

if TYPE_CHECKING:
    from nas.model.pipeline import VideoOutput

PREFIX = "temporal_nas."
APP = PREFIX + "app"  # where a package's metadata says, in JSON, what an app must know of it
FILES = {"network": "unet.mlpackage", "text_encoder": "text_encoder.mlpackage", "decoder": "decoder.mlpackage"}
Three = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=3, max_length=3)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str  # 12 hex characters: packages of one model have the same


Facts = TypeVar("Facts", bound=_Facts)


class Clip(BaseModel):
    """What one function of the network's package takes."""

    pixels: Three  # frames, height, width of the video
    latents: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=4, max_length=4)]  # frames, channels, h, w


class NetworkFacts(_Facts):
    """The network: `velocity = y(x, timestep, context)`, noise minus data, at `timestep_scale` times a noise level."""

    sigmas: Annotated[list[Finite], Field(min_length=1, max_length=10_000)]
    guidance: Finite
    renoise: bool  # fresh noise between steps, instead of following the predicted one
    timestep_scale: Finite
    fps: Annotated[Finite, Field(gt=0)]
    functions: Annotated[dict[str, Clip], Field(min_length=1)]  # the first is the default
    latents: bool  # whether a decoder makes frames of its answer; else it is frames in -1..1


class TextFacts(_Facts):
    """The text encoder: `y` are the states of `length` token numbers, padded with `pad` at the end."""

    length: Annotated[int, Field(ge=1)]
    pad: Annotated[int, Field(ge=0)]
    unknown: int | None
    tokenizer: str  # the tokenizer.json of Hugging Face's tokenizers


class DecoderFacts(_Facts):
    """The decoder: one tile of latents to frames in -1..1; the latents' scale and offset are undone inside."""

    tile: Three  # latent frames, height, width
    overlap: Three  # shared by neighbouring tiles, blended by linear ramps
    time: Annotated[int, Field(ge=1)]  # how many frames, and
    space: Annotated[int, Field(ge=1)]  # pixels of a side, a latent becomes


class Runner:
    """One package, run by Core ML on macOS and by the evaluator elsewhere.

    Raises:
        NasError: if it is no package, or of another tool.
    """

    def __init__(self, path: Path) -> None:
        from device_profiler.evaluator.package import Package
        from device_profiler.evaluator.types import PackageError

        try:
            self.package = Package(path)
        except PackageError as error:
            raise NasError(str(error)) from error
        if APP not in self.package.metadata:
            raise NasError(
                f"{path}: its metadata has no {APP}: made by another tool or an older version; write it with nas export"
            )
        self._loaded: dict[str, Any] = {}

    def facts(self, kind: type[Facts]) -> Facts:
        """What its metadata says for an app.

        Raises:
            NasError: if that is damaged, or of another part.
        """
        try:
            return kind.model_validate(json.loads(self.package.metadata[APP]))
        except (ValidationError, ValueError, RecursionError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no JSON"}
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise NasError(
                f"{self.package.path}: its metadata's {APP} is damaged ({place}: {str(first['msg']).lower()}); "
                "export it again"
            ) from None

    def run(self, feeds: Mapping[str, Tensor], function: str | None = None) -> Tensor:
        """The output ``y``, in float32.

        Raises:
            NasError: if the package cannot be evaluated.
        """
        from device_profiler.evaluator.evaluate import evaluate
        from device_profiler.evaluator.types import PackageError

        try:
            chosen = self.package.function(function)
            if platform.system() == "Darwin":
                return self._predicted(chosen, feeds)
            return evaluate(chosen, feeds)["y"].float()
        except PackageError as error:
            raise NasError(str(error)) from error

    def _predicted(self, function: Any, feeds: Mapping[str, Tensor]) -> Tensor:
        import coremltools as ct
        import numpy as np

        if function.name not in self._loaded:
            several = {"function_name": function.name} if len(self.package.functions) > 1 else {}
            self._loaded[function.name] = ct.models.MLModel(str(self.package.path), **several)
        kinds = {"FLOAT16": np.float16, "FLOAT32": np.float32, "INT32": np.int32}
        fed = {name: feeds[name].numpy().astype(kinds[kind.kind]) for name, kind in function.inputs}
        return torch.from_numpy(np.asarray(self._loaded[function.name].predict(fed)["y"], dtype=np.float32))


class Words:
    """Prompts to token numbers, by the tokenizer in the text encoder's metadata."""

    def __init__(self, facts: TextFacts, source: Path) -> None:
        from tokenizers import Tokenizer

        self.facts = facts
        try:
            self._tokenizer = Tokenizer.from_str(facts.tokenizer)
        except Exception as error:  # tokenizers raises no class of its own
            raise NasError(f"{source}: its tokenizer is damaged ({error}); export it again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def numbers(self, prompt: str) -> Tensor:
        """(1, L) token numbers.

        Raises:
            NasError: if the prompt has more tokens than the encoder takes; nothing is cut silently.
        """
        found = self._tokenizer.encode(prompt).ids
        limit = self.facts.length
        if len(found) > limit:
            raise NasError(
                f"the prompt has {len(found)} tokens, the text encoder takes {limit}: {prompt!r}; shorten it"
            )
        return torch.tensor([[*found, *[self.facts.pad] * (limit - len(found))]], dtype=torch.int32)

    def unknown(self, prompt: str) -> list[str]:
        """Words that the tokenizer has no token for."""
        mark = self.facts.unknown
        return [word for word in prompt.split() if mark in self._tokenizer.encode(word, add_special_tokens=False).ids]


class Packages:
    """The packages of a folder as one model.

    Raises:
        NasError: if a part is missing, of another tool, damaged, or of another model than the network.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._network = self._open("network")
        self.network = self._network.facts(NetworkFacts)
        self._text = self._open("text_encoder")
        self.text = self._text.facts(TextFacts)
        self._words = Words(self.text, self._text.package.path)
        self._decoder = self._open("decoder") if self.network.latents else None
        self.decoder = None if self._decoder is None else self._decoder.facts(DecoderFacts)
        for name, facts in (("text_encoder", self.text), ("decoder", self.decoder)):
            if facts is not None and facts.model != self.network.model:
                raise NasError(
                    f"{folder}: {FILES[name]} is of model {facts.model}, {FILES['network']} of {self.network.model}; "
                    "export all parts of one model into one folder"
                )

    def _open(self, part: str) -> Runner:
        path = self.folder / FILES[part]
        if not path.exists():
            raise NasError(f"{self.folder}: no {path.name} there; export the model with --parts {','.join(FILES)}")
        return Runner(path)

    @property
    def fps(self) -> float:
        return self.network.fps

    def shape(self, *wanted: int | None) -> tuple[tuple[int, int, int], bool]:
        """Frames, height and width of the first function that has those which are given; and that they are known.

        Raises:
            NasError: if no function has them.
        """
        made = [clip.pixels for clip in self.network.functions.values()]
        for frames, height, width in made:
            if all(ours in (None, size) for ours, size in zip(wanted, (frames, height, width), strict=True)):
                return (frames, height, width), True
        raise NasError(
            f"{self.folder}: has functions for {', '.join('x'.join(map(str, clip)) for clip in made)} (frames, height, "
            "width) and no other; export with --shape"
        )

    def unknown_words(self, prompt: str) -> list[str]:
        return self._words.unknown(prompt)

    def sample(
        self,
        prompts: Sequence[str],
        shape: tuple[int, int, int],
        generators: Sequence[torch.Generator],
        steps: int | None,
        guidance: float | None,
        callback: Callable[[int, int], None],
    ) -> VideoOutput:
        """One video a prompt; the order of calls is the one of ``docs/model.md``."""
        from nas.model.pipeline import VideoOutput

        facts = self.network
        levels, scale = plan_levels({"sigmas": facts.sigmas, "guidance": facts.guidance}, steps, None, guidance)
        function = next(name for name, clip in facts.functions.items() if tuple(clip.pixels) == shape)
        texts = [self._states(prompt) for prompt in prompts]
        empty = self._states("") if scale != 1.0 else None
        frames, channels, height, width = facts.functions[function].latents
        drawn = (1, channels, frames, height, width)  # as the model's own pipeline draws it, for the same seed
        videos = [torch.randn(drawn, generator=generator)[0].transpose(0, 1) for generator in generators]

        def velocity(x: Tensor, level: float, context: Tensor) -> Tensor:
            told = torch.tensor([facts.timestep_scale * level], dtype=torch.float32)
            return self._network.run({"x": x, "timestep": told, "context": context}, function)

        for step, level in enumerate(levels):
            after = levels[step + 1] if step + 1 < len(levels) else 0.0
            for place, (x, text) in enumerate(zip(videos, texts, strict=True)):
                answer = velocity(x, level, text)
                if empty is not None:
                    plain = velocity(x, level, empty)
                    answer = plain + scale * (answer - plain)
                if facts.renoise:
                    noise = torch.randn(drawn, generator=generators[place])[0].transpose(0, 1)
                    videos[place] = (1 - after) * (x - level * answer) + after * noise
                else:
                    videos[place] = x + (after - level) * answer
            callback(step + 1, len(levels))
        return VideoOutput(torch.stack([self._frames(video) for video in videos]), len(levels), levels, scale)

    def _states(self, prompt: str) -> Tensor:
        return self._text.run({"tokens": self._words.numbers(prompt)})

    def _frames(self, latents: Tensor) -> Tensor:
        """(t, C, h, w) to (T, H, W, 3) in 0..1."""
        from nas.finite import check_finite

        pixels = latents if self.decoder is None else self._decoded(latents, self.decoder)
        check_finite(pixels, "the sampled frames", "export with --safe, or sample with less guidance")
        return ((pixels.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)

    def _decoded(self, latents: Tensor, facts: DecoderFacts) -> Tensor:
        from nas.pretrained.tiles import tiled

        runner = self._decoder
        assert runner is not None

        def decode(tile: Tensor) -> Tensor:
            return runner.run({"latents": tile.transpose(0, 1)}).transpose(0, 1)

        window, overlap = (tuple(sizes) for sizes in (facts.tile, facts.overlap))
        return tiled(decode, latents.transpose(0, 1), window, overlap, (-facts.time, -facts.space)).transpose(0, 1)


def is_packages(folder: Path) -> bool:
    """Whether a folder holds packages and no model folder."""
    from nas.model.folder import INDEX

    return not (folder / INDEX).is_file() and any(folder.glob("*.mlpackage"))
