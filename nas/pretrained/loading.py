"""One guard around every library that loads a model, and what a loaded model must be: filled, and finite."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.finite import check_weights
from nas.pretrained.files import UnusableError, choose_weights
from nas.pretrained.hub import fetch, first_line, has_part, read_config

LIBRARIES = ("diffusers", "transformers", "huggingface_hub")
NAMED = 3  # tensors in a sentence


@contextmanager
def no_bars() -> Iterator[None]:
    """diffusers and transformers draw a bar for every file, over ours; off while this lasts."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: list[Any] = [diffusers_logging, transformers_logging]
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was_shown in zip(libraries, shown, strict=True):
            if was_shown:
                library.enable_progress_bar()


@contextmanager
def loading(source: str | Path, what: str, remedy: str) -> Iterator[None]:
    """While a library loads ``source``: whatever it raises becomes one sentence, and it says nothing besides.

    Libraries raise classes of their own and of anybody's, and tokenizers' panics are not even an ``Exception``: so the
    kind is closed here, and not class by class. What is left out or missing is checked after loading, so their notes
    are not missed.

    Raises:
        NasError: for anything but an interrupt.
    """
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    try:
        with no_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    except UnusableError as error:
        raise NasError(f"no {what} could be loaded: {error}") from error
    except (NasError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise NasError(f"{source}: no {what} could be loaded ({first_line(error)}); {remedy}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def open_part(source: str, part: str) -> tuple[Path, dict[str, Any]]:
    """Folder and configuration of a model, or of a pipeline's ``part`` where ``source`` is one.

    Raises:
        NasError, OSError: if there is none, or its configuration is damaged or names code of its own.
    """
    folder = fetch(source, part if has_part(source, part) else "")
    return folder, read_config(folder / "config.json")


def load_weights(kind: Any, folder: Path, source: str, *, allow_extra: bool = True, **options: Any) -> Any:
    """A model of class ``kind`` (diffusers or transformers) with the folder's weights of first rank, in float32.

    Args:
        allow_extra: whether tensors that the model has no place for are left out, with a word; else they are refused.
        options: for ``from_pretrained``.

    Raises:
        NasError: if weights are missing, damaged, not finite, or do not fill the model.
    """
    weights = choose_weights(folder)
    model, told = kind.from_pretrained(
        str(folder),
        variant=weights.variant or None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    _check_filled(source, kind.__name__, told, allow_extra)
    model = model.float()
    check_weights(model, source)
    return model


def _check_filled(source: str, kind: str, told: Mapping[str, Any], allow_extra: bool) -> None:
    missing, extra = sorted(map(str, told["missing_keys"])), sorted(map(str, told["unexpected_keys"]))
    if missing:
        raise NasError(
            f"{source}: its weights do not fill the {kind}: {_listed(missing)} missing; get or build the model anew"
        )
    if told.get("mismatched_keys"):
        raise NasError(
            f"{source}: its weights have other shapes than the {kind} of its config.json: "
            f"{_listed(sorted(map(str, told['mismatched_keys'])))}; get or build the model anew"
        )
    if extra and not allow_extra:
        raise NasError(
            f"{source}: its weights are not of its config.json: the {kind} has no place for {_listed(extra)}; "
            "build the model anew"
        )
    if extra:
        from nas.console import say

        say(f"{source}: left out of the weights, as a {kind} has no place for it: {_listed(extra)}")


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:NAMED]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(shown) + more
