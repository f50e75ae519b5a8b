"""Preference sets: several clips of one prompt, and which is better."""
