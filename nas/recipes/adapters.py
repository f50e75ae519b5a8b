"""LoRA through peft: small trained matrices beside the frozen linear layers of a network, merged when it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nas.errors import NasError


class Adapters(nn.Module):
    """The LoRA matrices of a network, which is frozen but for them; all that is trained, averaged and checkpointed.

    Args:
        network: every linear layer of it gets an adapter, in place. rank: of the matrices; their scale is 1.

    Raises:
        NasError: if peft is not installed, or the network has no linear layer.

    Source: Hu et al. (arXiv 2106.09685); rank 128 is DenseDPO's (arXiv 2506.03517, appendix A).
    """

    def __init__(self, network: nn.Module, rank: int, seed: int) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ModuleNotFoundError:
            raise NasError(
                "preference.lora_rank needs peft, which is not installed; pip install 'temporal-nas[lora]', or set "
                "preference.lora_rank=0 to train all weights"
            ) from None
        names = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        if not names:
            raise NasError("preference.lora_rank: the network has no linear layer to adapt; set it to 0")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)
        self._network = [network]  # in a list: its own weights are not ours to train
        self.matrices = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in network.named_parameters() if p.requires_grad}
        )

    def _layers(self) -> Iterator[tuple[nn.Module, str, Any]]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for parent in list(self._network[0].modules()):
            for name, part in list(parent.named_children()):
                if isinstance(part, BaseTunerLayer):
                    yield parent, name, part

    @contextmanager
    def without(self) -> Iterator[None]:
        """The network as it was before, while this lasts."""
        layers = [layer for _, _, layer in self._layers()]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the matrices into the network's own layers and take the adapters off."""
        for parent, name, layer in self._layers():
            layer.merge()
            setattr(parent, name, layer.get_base_layer())
