"""Does the supernet rank arrangements as training each alone would?"""
