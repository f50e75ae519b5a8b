"""Preference sets: several clips of one prompt, what rewards and people say of them, and how they are made."""
