"""The errors of this package: a sentence for the user, shown without a traceback; and sentences for the system's."""

from __future__ import annotations

import errno


class NasError(ValueError):
    """Wrong use or bad input: the message states the rule, the values and the remedy, in one line."""


class AnswerIsNo(NasError):
    """Nothing was wrong with the question; the answer is no, such as a budget that nothing meets."""


NO_MORE_MEMORY = ("can't allocate memory", "CUDA out of memory", "Cannot allocate memory")


def explain(error: Exception) -> str | None:
    """The sentence for a user, or None for a fault of ours, which should be reported."""
    from device_profiler.errors import ProfileError
    from latency_tables.errors import TableError
    from search_spaces.errors import SpaceError

    if isinstance(error, NasError | SpaceError | ProfileError | TableError):
        return " ".join(str(error).split()) if str(error).count("\n") > 8 else str(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MORE_MEMORY):
        return "there is not enough memory for this; take smaller clips or batches, or a larger machine"
    return _of_the_system(error) if isinstance(error, OSError) and error.errno is not None else None


def _of_the_system(error: OSError) -> str:
    """What the system refused, and what to do: none of it is a fault of ours."""

    path = f"{error.filename}: " if error.filename else ""
    full = why_full(error)
    if full is not None:
        return f"{path}{full[0]}; {full[1]} and run the same command to go on from here"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{path}no permission to write or read there; choose another folder"
    if error.errno == errno.ENAMETOOLONG:
        return f"{path[:100]}{'… ' if len(path) > 100 else ''}a name longer than file systems allow; shorten it"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{path}too many files are open; raise the limit with ulimit -n"
    if error.errno == errno.ENOMEM:
        return "there is not enough memory for this; take smaller clips or batches, or a larger machine"
    return f"{path}{(error.strerror or 'not usable').lower()}; check the path"


FULL = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("your share of the disk (quota) is used up", "free some space"),
    errno.EFBIG: ("the file is larger than the file system or ulimit -f allows", "write to another disk, or raise it"),
}
_SAID = {  # safetensors has no errno in its errors
    "No space left": errno.ENOSPC,
    "quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
}


def why_full(error: BaseException) -> tuple[str, str] | None:
    """What is used up and the remedy, where an error says that nothing more can be written; None where it does not."""
    if isinstance(error, OSError) and error.errno in FULL:
        return FULL[error.errno]
    return next((FULL[code] for words, code in _SAID.items() if words in str(error)), None)
