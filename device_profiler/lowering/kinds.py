"""Kinds of counted operations: those that have a ceiling of their own on some units. Needs no torch."""

CONV, MATMUL, OTHER = "conv", "matmul", ""
