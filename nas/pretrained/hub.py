"""Where a model is: a folder, or a repository of the hub whose files are fetched; and what it says of itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from nas.pretrained.files import WEIGHTS, UnusableError, rank_weights

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
SMALL = (".json", ".txt", ".model")  # configurations, vocabularies, merges
MOST_BYTES = 16_000_000  # of a configuration that is read
MOST_NUMBER = 2**31 - 1
MOST_LAYERS = 1024
LAYERS = re.compile(r"(^|_)(layers|blocks)(_per_block)?$")


def check_source(source: str) -> None:
    """Whether a model may be there at all, before a library retries for a minute and talks of it.

    Raises:
        OSError: if it is neither a folder nor a hub id, or the hub is out of reach and nothing of it is kept here.
    """
    if Path(source).exists():
        return
    if not HUB_ID.fullmatch(source):
        raise OSError("no such folder")
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants, snapshot_download

    try:
        snapshot_download(source, local_files_only=True)
        return
    except (OSError, ValueError):  # not kept here
        host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise OSError("no such folder, and HF_HUB_OFFLINE is set")
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            raise OSError(f"no such folder, and {host} cannot be reached") from None


def has_part(source: str, part: str) -> bool:
    """Whether a model folder or hub repository is a pipeline with this part; a repository that cannot say is not."""
    folder = Path(source)
    if folder.exists() or source.startswith((".", "/", "~")):
        return (folder / part / "config.json").is_file()
    from huggingface_hub import hf_hub_download

    try:
        check_source(source)
        hf_hub_download(source, f"{part}/config.json")
    except Exception:  # not there, no network, no such repository: loading says which, with the better sentence
        return False
    return True


def fetch(source: str, part: str = "") -> Path:
    """The folder of a model, or of a pipeline's part; of a repository its small files and the weights of first rank.

    Raises:
        OSError: if there is none.
    """
    check_source(source)
    if Path(source).exists():
        return Path(source) / part
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    try:
        kept = Path(snapshot_download(source, local_files_only=True)) / part
    except (OSError, ValueError):
        kept = None
    if kept is not None and (constants.HF_HUB_OFFLINE or rank_weights(_names(kept))):
        return kept
    listed = HfApi().list_repo_files(source)
    inside = [name for name in listed if PurePosixPath(name).parent == PurePosixPath(part or ".")]
    wanted = [name for name in inside if name.endswith(SMALL) and not WEIGHTS.fullmatch(PurePosixPath(name).name)]
    ranked = rank_weights([PurePosixPath(name).name for name in inside])
    if ranked:
        wanted += [str(PurePosixPath(part, name)) for name in ranked[0].stored]
    folder = Path(source) / part
    for name in wanted:
        folder = Path(hf_hub_download(source, name)).parent
    return folder


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def read_config(path: Path) -> dict[str, Any]:
    """A configuration that a library will build a model of, with nothing in it that no model has.

    Raises:
        UnusableError: if it is no JSON mapping, names code of its own (``auto_map``), or holds numbers beyond reason: a
            library would run that code, or work for hours.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UnusableError(
                f"{path}: has {path.stat().st_size:,} bytes, over {MOST_BYTES:,}; that is no configuration"
            )
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UnusableError(f"{path}: no such file; give a folder or hub id that holds the whole model") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnusableError):
            raise
        raise UnusableError(f"{path}: is no JSON ({first_line(error)}); get the file anew") from None
    if not isinstance(found, dict):
        raise UnusableError(f"{path}: must be a mapping, but is a {type(found).__name__}; get the file anew")
    if found.get("auto_map"):
        raise UnusableError(
            f"{path}: names code of its own (auto_map), and a model's own code is never run; remove auto_map to load "
            "it with the library's classes, or give another model"
        )
    for name, value in _leaves(found):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not abs(value) <= (MOST_LAYERS if LAYERS.search(name) else MOST_NUMBER) and not _is_infinite_length(name):
            raise UnusableError(f"{path}: {name} is {str(value)[:40]}, which no model has; get the file anew")
    return found


def _is_infinite_length(name: str) -> bool:
    """transformers writes 1e30 where a tokenizer knows no limit."""
    return name == "model_max_length"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(".") if lines else type(error).__name__


def model_digest(model: Any) -> str:
    """16 hex characters of a model's configuration and weights; the same for a copy elsewhere."""
    config = {
        k: v for k, v in dict(model.config if not hasattr(model.config, "to_dict") else {}).items() if k[0] != "_"
    }
    digest = hashlib.sha256(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
