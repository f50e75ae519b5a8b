"""The supernet: all networks of a space in one, how it is trained, and how its paths are scored."""
