"""What may be chosen: blocks, families of networks, positions, spaces."""
