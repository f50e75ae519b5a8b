"""A large UNet cut to a small backbone, which recovers by distillation."""

from nas.prune.prune import prune_unet

__all__ = ["prune_unet"]
