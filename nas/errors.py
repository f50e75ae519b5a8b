"""The errors of this package: a sentence for the user, shown without a traceback."""


class NasError(ValueError):
    """Wrong use or bad input: the message states the rule, the values and the remedy, in one line."""


class AnswerIsNo(NasError):
    """Nothing was wrong with the question; the answer is no, such as a budget that nothing meets."""
