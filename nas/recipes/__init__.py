"""Ways to fine-tune a built model, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import AnswerIsNo, NasError

if TYPE_CHECKING:
    from nas.recipes.config import FinetuneConfig
    from nas.recipes.contract import Recipe, Source
    from nas.training.config import StageConfig
    from nas.training.distributed import World
    from nas.training.loop import Loop

Progress = Callable[[int, Mapping[str, float]], None]
Warn = Callable[[str], None]


def finetune(
    model: Path,
    stage: str,
    config: FinetuneConfig,
    out: Path,
    *,
    progress: Progress | None = None,
    warn: Warn = lambda message: None,
) -> dict[str, Any]:
    """Fine-tune ``model`` into ``out``, a model folder like it; go on where ``out`` holds a part of that work.

    Checkpoints, the log (``metrics.jsonl``), ``config.yaml`` and ``result.json`` lie in ``out/finetune``. The model
    itself, with the averaged weights, appears in ``out`` at the end, whole. Several processes that torchrun, accelerate
    or ``nas finetune --processes`` started share the clips of a step.

    Args:
        stage: the name of a recipe; see ``nas.recipes.contract``.

    Returns:
        Path, stage, steps, the last losses, what the recipe improved, motion before and after, and whether this process
        is the main one; see ``nas.recipes.result``.

    Raises:
        NasError: if the model is none, ``out`` holds another fine-tuning, a step goes wrong again and again, or another
            process ended.
        AnswerIsNo: if the discriminator collapses; ``out`` then holds the model of the last good checkpoint.
    """
    import os

    import torch

    from nas.recipes.contract import find_recipe
    from nas.training.distributed import LAUNCHED, PEER_LOST, PeerLost, World

    recipe = find_recipe(stage)
    if out.resolve() == model.resolve():
        raise NasError(f"--out is the model itself ({model}); give another folder, the model is kept as it is")
    settings = config.stage(stage)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    world = World.open(settings.device, f"{stage}.device")
    try:
        return _finetune(model, recipe, config, out, world, progress, warn)
    except PeerLost:
        if LAUNCHED in os.environ:  # who started us saw which process it was, and says so once
            raise SystemExit(PEER_LOST) from None
        raise
    finally:
        world.close()


def _finetune(
    model: Path,
    recipe: Recipe,
    config: FinetuneConfig,
    out: Path,
    world: World,
    progress: Progress | None,
    warn: Warn,
) -> dict[str, Any]:
    from nas.files import only_leftovers
    from nas.model.made_with import FINETUNE
    from nas.model.pipeline import load_pipeline, save_pipeline
    from nas.recipes.result import told_of
    from nas.training.loop import Loop

    settings = config.stage(recipe.name)
    model, place = model.resolve(), out.resolve()  # a folder that one stands in is another one once it is replaced
    pipeline = load_pipeline(model).to(world.device)
    facts = _facts(pipeline, recipe, config)
    folder = out / FINETUNE
    if out.is_dir() and not folder.is_dir() and not only_leftovers(out):
        raise NasError(f"{out} is not empty and holds no fine-tuning; give a new or empty folder to --out")
    source = _source(recipe, pipeline, config, settings, world)
    facts |= getattr(source, "facts", {})
    work = recipe.stage(_materials(model, pipeline, source, config.seed, settings, world), settings)
    world.wait()  # all have looked at the folder before it is written to
    if world.main:
        _write_settings(folder, config)
    loop = Loop(work, folder, facts, config.seed, warn)
    collapsed = _run(loop, folder, world, progress)
    pipeline = recipe.finish(work, _averaged(loop, pipeline, model))
    shapes = [[clip.frames, clip.height, clip.width] for clip in source.clips]
    pipeline.set_sampling(**recipe.sampling(settings), clips=shapes)
    pipeline.unet.eval()
    pipeline.text_encoder.eval()
    if world.main:
        save_pipeline(pipeline.to("cpu"), out)
    world.wait()
    told = told_of(model, place, recipe, config, pipeline, source, world) if world.main else {}
    if collapsed is not None:
        raise AnswerIsNo(f"{out}: {collapsed}. The model there is that one") from collapsed
    summary = {"model": str(out), "stage": recipe.name, "steps": loop.step, **_last(loop), "main": world.main}
    return {**summary, **told}


def _facts(pipeline: Any, recipe: Recipe, config: FinetuneConfig) -> dict[str, Any]:
    """What a checkpoint must share with the fine-tuning that continues it; keys that came later count once used."""
    data = config.data.model_dump(mode="json", exclude={"cache", "outside"})
    later = [name for name in ("rotation", "approach") if not any(data[name])]
    data = {name: value for name, value in data.items() if name not in later}
    return {"stage": recipe.name, "model": pipeline.fingerprint(), "seed": config.seed, "data": data}


def _source(recipe: Recipe, pipeline: Any, config: FinetuneConfig, settings: StageConfig, world: World) -> Source:
    """The recipe's clips, every caption of which fits the text encoder."""
    from nas.data.lengths import fits
    from nas.recipes.contract import Opening
    from nas.training.batches import Batches

    source: Source
    if recipe.source is not None:
        source = recipe.source(Opening(pipeline, config.data, config.seed, world), settings)
    else:
        check = fits(pipeline.tokenizer, pipeline.text_encoder.config.max_position_embeddings)
        source = Batches(pipeline.unet.space, config.data, settings, config.seed, world, check, recipe.needs)
    pipeline.check_prompts(source.captions)
    return source


def _materials(model: Path, pipeline: Any, source: Source, seed: int, settings: StageConfig, world: World) -> Any:
    from nas.recipes.contract import Materials
    from nas.training.engine import Engine

    return Materials(pipeline, model, source, seed, Engine(settings, world))


def _run(loop: Loop[Any], folder: Path, world: World, progress: Progress | None) -> AnswerIsNo | None:
    """Train to the end; what a stage found beyond repair is returned, its last good weights taken back."""
    from nas.training.checkpoint import sole_writer

    try:
        with sole_writer(folder) if world.main else nullcontext(), world.together():
            loop.run(progress)
    except AnswerIsNo as answer:
        return answer
    return None


def _last(loop: Loop[Any]) -> dict[str, Any]:
    """The losses of the last step."""
    return {name: value for name, value in (loop.rows[-1] if loop.rows else {}).items() if name.startswith("loss")}


def _write_settings(folder: Path, config: FinetuneConfig) -> None:
    import yaml

    from nas.config import CONFIG_FILE
    from nas.files import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG_FILE).is_file():
        write_whole(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _averaged(loop: Loop[Any], pipeline: Any, model: Path) -> Any:
    """The pipeline with the averaged weights; a new one where the trained one is split over processes."""
    import torch

    from nas.model.pipeline import load_pipeline

    if not loop.stage.engine.sharded:
        loop.load_average()
        return pipeline
    values, made = loop.whole_average(), load_pipeline(model)
    parts = {"unet": made.unet, "text": made.text_encoder}
    with torch.no_grad():
        for name in loop.stage.averaged:
            for inner, parameter in parts[name].named_parameters():
                parameter.copy_(values[f"{name}.{inner}"])
    return made
