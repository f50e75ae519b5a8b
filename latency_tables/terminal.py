"""What a person reads on a terminal: no escapes of strangers, and no complaint where nobody reads on."""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from typing import TextIO

# Escapes move the cursor, set titles and colours; direction marks show text in another order than it stands.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with control characters and halves of characters written out, such as ``\\x1b``; lines and tabs stay.

    >>> plain("chip \\x1b[31mred")
    'chip \\\\x1b[31mred'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def tell(text: object = "", end: str = "\n") -> None:
    """Print for a person, on standard output."""
    _write(sys.stdout, plain(str(text)) + end)


def warn(text: object) -> None:
    """Print for a person, on standard error."""
    _write(sys.stderr, plain(str(text)) + "\n")


def settle() -> None:
    """Flush both streams; call it last, so that a reader who left is no error at the very end."""
    for stream in (sys.stdout, sys.stderr):
        _write(stream, "")


def fault(error: BaseException) -> str:
    """The sentence for an exception that nobody foresaw: what, where, and that it should be reported."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return (
        f"an unforeseen fault ({what}{at}). This is an error of temporal-nas and not of yours: please report it, with "
        "the command and what it prints with --debug"
    )


def _write(stream: TextIO | None, text: str) -> None:
    """A closed pipe (``| head``) takes no more lines: the work goes on, and ends with its own exit code."""
    if stream is None:
        return
    try:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except ValueError:  # a stream that somebody closed
        if not stream.closed:
            raise
