"""Folders as a stranger may send them: links under every name that is ours, modules, pickles, code of their own.

Each takes a copy of the workshop of ``mortal.py``, plants something in it, and says which commands a person would run
there. What a link leads to lies outside; what runs the stranger's code leaves a file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OUTSIDE = "kept.txt"


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.proof),))


@dataclass(frozen=True)
class Hostile:
    """A folder of a stranger.

    Attributes:
        plant: puts the trap into a folder: (folder, a folder outside with a file to be kept, file that code makes).
        commands: names in ``mortal.COMMANDS`` whose outputs are removed and which are run, or words.
        alone: whether each is a process of its own, started in that folder, as a person does.
    """

    name: str
    plant: Callable[[Path, Path, Path], None]
    commands: tuple[str | tuple[str, ...], ...]
    alone: bool = False


# Names of files of ours, each with the command that would write, read or lock it.
FILES = {
    "run/.lock": "report",
    "run/search.lock": "search",
    "run/study.journal": "search",
    "run/front.csv": "search",
    "run/arrangement.yaml": "search",
    "run/explain.json": "search",
    "run/rescored.json": "search",
    "run/metrics.json": "search",
    "run/metrics.partial": "search",
    "run/front.partial": "search",
    "run/explain.partial": "search",
    "run/.front.csv.partial": "search",
    "run/config.yaml": "train",
    "run/supernet/.lock": "train",
    "run/supernet/metrics.jsonl": "train",
    "run/supernet/best.json": "train",
    "run/supernet/begun.json": "train",
    "run/supernet/step-00000001": "train",
    "run/report.html": "report",
    "run/.report.html.partial": "report",
    "run/rank.csv": "rank",
    "run/rank.json": "rank",
    "run/model": "build",
    "run/.model.partial": "build",
    "run/..model.lock.partial": "build",
    "run/.model.lock.partial": "build",
    "run/coreml": "export",
    "run/tuned": "finetune",
    "run/a.mp4": "sample",
    "run/a.png": "sample",
    "run/vbench": "evaluate for VBench",
    "run/model/metrics.json": "evaluate",
    "run/table/board/roofline.csv": "profile",
    "run/table/board/roofline.yaml": "profile",
    "run/table/board/.table.lock": "profile",
    "run/table/.table.lock": "profile",
    "run/table/.gitattributes": "profile",
    "cached/.lock": "cache",
    "cached/index.json": "cache",
    "cached/cache.json": "cache",
    "pruned/.lock": "prune",
    "pruned/cuts.json": "prune",
    "pruned/sensitivity.csv": "prune",
    "page.html": "table report",
    "diff.html": "table diff",
    "merged/b/r.csv": "table merge",
    "moved/b/r.csv": "table transfer",
    "mini.plan.json": "space show",
}
MODULES = ("queue", "secrets", "torch", "yaml", "sitecustomize", "nas", "av", "_queue", "onnxruntime", "temporal_nas")


def links() -> Iterator[Hostile]:
    """A link under each name, to a file that is there, and to one that is not yet."""
    for name, command in FILES.items():
        for there in (True, False):

            def plant(folder: Path, outside: Path, proof: Path, name: str = name, there: bool = there) -> None:
                path = folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(outside / (OUTSIDE if there else "new"))

            yield Hostile(f"{name} -> {'a file' if there else 'a new file'}", plant, (command,))


def modules(folder: Path, outside: Path, proof: Path) -> None:
    """Modules in the folder where a person stands."""
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'w').close()\n")


def text_encoder_code(folder: Path, outside: Path, proof: Path) -> None:
    """A text encoder that names code of its own."""
    path = folder / "clip" / "config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoModel": "mine.Mine", "AutoConfig": "mine.Mine"}, "model_type": "mine"}
    path.write_text(json.dumps(config))
    (folder / "clip" / "mine.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass Mine: pass\n")


def foreign_modules(folder: Path, outside: Path, proof: Path) -> None:
    """A pipeline whose index names a module of the folder."""
    path = folder / "run" / "model" / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "scheduler": ["mine", "Mine"], "_class_name": ["mine", "Mine"]}))
    for where in (folder, folder / "run" / "model", folder / "run" / "model" / "scheduler"):
        where.mkdir(exist_ok=True)
        (where / "mine.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass Mine: pass\n")


def pickles(folder: Path, outside: Path, proof: Path) -> None:
    """Pickles where weights, samples and frames are looked for."""
    import pickle

    data = pickle.dumps(Runs(proof))
    for part in ("run/model/unet", "run/model/text_encoder", "source/unet", "allegro", "clip"):
        for weights in (folder / part).glob("*.safetensors"):
            weights.unlink()
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt", "model.ckpt"):
            (folder / part / name).write_bytes(data)
    for file in (folder / "run" / "supernet").rglob("*.safetensors"):
        file.write_bytes(data)
    for name in ("samples.npz", "samples.npy"):
        np.savez(folder / "run" / "samples" / name, real=np.array([Runs(proof)], dtype=object))


def yaml_tags(folder: Path, outside: Path, proof: Path) -> None:
    """YAML that would make objects."""
    tag = f'!!python/object/apply:os.mkdir ["{proof}"]\n'
    for name in ("run/config.yaml", "run/arrangement.yaml", "board.yaml", "mini.yaml", "run/table/board/roofline.yaml"):
        (folder / name).write_text(f"notes: {tag}space: {tag}")


def shell_words(folder: Path, outside: Path, proof: Path) -> None:
    """A device and captions that a shell would obey."""
    words = f"$(touch {proof}); touch {proof} | `touch {proof}`"
    with (folder / "board.yaml").open("a") as file:
        file.write(f"notes: {json.dumps(words)}\nchip: {json.dumps(words)}\n")
    (folder / "videos" / "captions.csv").write_text(f"path,caption\n0.mkv,{words}\n{words},a ball\n")


def outside_captions(folder: Path, outside: Path, proof: Path) -> None:
    """Captions that name files outside, and a list of streams in the place of a video."""
    (folder / "videos" / "captions.csv").write_text(f"path,caption\n{outside / OUTSIDE},a ball\n../../x.mkv,a ball\n")
    (folder / "videos" / "0.mkv").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{outside / OUTSIDE}\n#EXT-X-ENDLIST\n")


def hostile_tar(folder: Path, outside: Path, proof: Path) -> None:
    """A shard whose members lead outside, and links in it."""
    shutil.rmtree(folder / "videos")
    (folder / "videos").mkdir()
    with tarfile.open(folder / "videos" / "part.tar", "w") as tar:
        for name in (str(outside / "new.txt"), "../../../new.txt", "a.txt", "a.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"ball"))
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside / OUTSIDE)
        tar.addfile(link)


def repository(folder: Path, outside: Path, proof: Path) -> None:
    """A repository whose settings name programs."""
    import subprocess

    program = folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {proof}\n")
    program.chmod(0o755)
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "run/table"], check=True, capture_output=True)
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, *me, "commit", "-qm", "first"], check=True, capture_output=True)
    for key in ("core.fsmonitor", "core.pager", "diff.external", "core.sshCommand", "gpg.program", "core.hooksPath"):
        subprocess.run([*git, "config", key, str(program)], check=True)
    proof.unlink(missing_ok=True)


HOSTILE = (
    *links(),
    Hostile("modules of the folder", modules, ("train", "table report", "profile", "report"), alone=True),
    Hostile("a text encoder's own code", text_encoder_code, ("cache",), alone=True),
    Hostile("a pipeline's own modules", foreign_modules, ("sample", "finetune", "evaluate"), alone=True),
    Hostile("pickles for weights", pickles, ("sample", "build", "search", "prune", "cache", "report")),
    Hostile("tags in YAML", yaml_tags, ("train", "search", "report", "profile", "table report", "space show")),
    Hostile("shell words", shell_words, ("profile", "cache")),
    Hostile("captions that lead outside", outside_captions, ("cache",)),
    Hostile("a shard that leads outside", hostile_tar, ("cache",)),
    Hostile("a repository's programs", repository, ("table report", "report"), alone=True),
)
