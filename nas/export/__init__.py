"""A model folder as Core ML packages, ready for a phone: the network, its text encoder, its decoder."""

from nas.export.packages import export_model

__all__ = ["export_model"]
