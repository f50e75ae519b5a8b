"""Searched video decoders: built, distilled for an encoder that stays, exported."""
