"""The model that comes out of a search: built, loaded, sampled."""
