"""The one error of this package: a table, a plan or a question to them that cannot be answered."""


class TableError(ValueError):
    """The rule that was broken, the values that broke it, and the remedy, in one line."""
