"""Choose, train and build: the supernet, the search and the model."""

from typing import TYPE_CHECKING

from search_spaces.lazily import lazily

if TYPE_CHECKING:
    from nas.config import resolve
    from nas.errors import NasError
    from nas.evaluate import evaluate_model
    from nas.export import export_model
    from nas.model.build import build_model
    from nas.model.network import VideoUNet
    from nas.model.pipeline import TextToVideoPipeline, load_pipeline
    from nas.model.sample import sample_video
    from nas.pretrained.searched import SearchedAutoencoder
    from nas.report import write_report
    from nas.run.answer import search_arrangement
    from nas.run.job import run_all, train_supernet
    from nas.search.front import pareto_front
    from nas.search.own import search_with

__all__ = [
    "NasError",
    "SearchedAutoencoder",
    "TextToVideoPipeline",
    "VideoUNet",
    "build_model",
    "evaluate_model",
    "export_model",
    "load_pipeline",
    "pareto_front",
    "resolve",
    "run_all",
    "sample_video",
    "search_arrangement",
    "search_with",
    "train_supernet",
    "write_report",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        # diffusers looks a saved pipeline's parts up here, by the names that the model folder states
        "TextToVideoPipeline": "nas.model.pipeline",
        "VideoUNet": "nas.model.network",
        "SearchedAutoencoder": "nas.pretrained.searched",
        "NasError": "nas.errors",
        "build_model": "nas.model.build",
        "evaluate_model": "nas.evaluate",
        "export_model": "nas.export",
        "load_pipeline": "nas.model.pipeline",
        "pareto_front": "nas.search.front",
        "resolve": "nas.config",
        "run_all": "nas.run.job",
        "sample_video": "nas.model.sample",
        "search_arrangement": "nas.run.answer",
        "search_with": "nas.search.own",
        "train_supernet": "nas.run.job",
        "write_report": "nas.report",
    },
)
