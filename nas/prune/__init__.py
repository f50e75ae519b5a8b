"""From a large diffusers UNet to a small backbone: what it can do without is cut, the rest recovers by distillation."""

from nas.prune.prune import prune_unet

__all__ = ["prune_unet"]
