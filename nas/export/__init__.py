"""A model as Core ML packages: network, text encoder, decoder."""

from nas.export.packages import export_model

__all__ = ["export_model"]
