"""What may be chosen: temporal blocks, backbones, positions, and the spaces made of them."""
