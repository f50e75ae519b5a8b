"""Other people's models, and ours on disk, loaded behind one guard."""
