"""An autoencoder folder of a run's chosen arrangement, with the weights that the search scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nas.config import RunConfig, load
from nas.data import open_data
from nas.decoder.folder import is_autoencoder, save_autoencoder
from nas.errors import NasError
from nas.outputs import check_replaceable
from nas.pretrained.searched import SearchedAutoencoder
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space

TOLERANCE = 1e-4  # of the largest output; float32 sums in another order
CLIPS = 8  # whose latents say how large a latent is


@torch.no_grad()
def build_autoencoder(run: Path, out: Path, autoencoder: str | None = None) -> dict[str, Any]:
    """Build the run's chosen arrangement into ``out``, a folder that diffusers loads.

    Returns:
        Path, parameters, and the largest difference to the supernet's path.

    Raises:
        NasError: if no arrangement was chosen yet, or the built model does not equal the supernet's path.
    """
    from nas.supernet.trained import load_supernet

    if autoencoder is not None:
        raise NasError(f"{run}: is an autoencoder's own run; leave --autoencoder out")
    check_replaceable(out, is_autoencoder, "autoencoder")
    config = load(run)
    space = Space.load(config.space)
    chosen = run / "arrangement.yaml"
    if not chosen.is_file():
        raise NasError(f"{run}: no arrangement.yaml there; choose one with nas search {run}")
    arrangement = Arrangement.load(chosen)
    supernet, _, step = load_supernet(space, run / "supernet")
    clips = _clips(config, space)
    network = supernet.extract(arrangement)
    moments = supernet.predict({"video": clips.flatten(0, 1), "frames": clips.shape[1]}, arrangement)
    means = moments.chunk(2, dim=1)[0]
    spread, mean = torch.std_mean(means, dim=(0, 2, 3))
    model = SearchedAutoencoder(
        space.to_json(),
        arrangement.to_json(),
        latents_mean=[round(value, 6) for value in mean.tolist()],
        latents_std=[round(max(value, 1e-3), 6) for value in spread.tolist()],
    )
    model.network.load_state_dict(network.state_dict())
    frames = len(means) // len(clips)
    shared = supernet.predict({"x": means[:frames], "frames": frames}, arrangement)
    built = model.eval().decode(means[:frames].transpose(0, 1)[None], return_dict=False)[0][0].transpose(0, 1)
    difference = float((built - shared).abs().max() / shared.abs().max())
    if not difference <= TOLERANCE:
        raise NasError(f"{out}: the built model differs from the supernet's path by {difference:.1e}, over {TOLERANCE}")
    save_autoencoder(model, out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"model": str(out), "arrangement": arrangement.key, "parameters": parameters}
    return {**facts, "difference": difference, "supernet_step": step}


def _clips(config: RunConfig, space: Space) -> torch.Tensor:
    data = open_data(config.data, space.clip("training"), "validation", config.seed)
    return torch.stack([data[i]["video"] for i in range(min(CLIPS, len(data)))])
