"""Searched video decoders: built from a run, distilled for an encoder that stays, shown and exported."""
