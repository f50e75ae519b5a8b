"""A large network cut to a small one by what it misses least; what is left recovers by distillation."""

from nas.prune.prune import prune_network

__all__ = ["prune_network"]
