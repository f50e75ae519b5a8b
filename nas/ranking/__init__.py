"""Does the supernet rank arrangements as training each of them alone would? The evidence, and what to do without it."""
