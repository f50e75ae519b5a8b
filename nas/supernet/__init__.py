"""All networks of a space in one: how it is trained and scored."""
