"""A large network cut to a small one, which recovers by distillation."""

from nas.prune.prune import prune_network

__all__ = ["prune_network"]
