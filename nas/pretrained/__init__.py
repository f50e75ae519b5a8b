"""Other people's models, and ours on disk: found, chosen by rank, checked, and loaded behind one guard."""
