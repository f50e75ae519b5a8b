"""Pages that open offline: a table, and what changed between two."""
