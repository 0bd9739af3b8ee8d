"""Data files, one example a line: a bad line is named, or counted and skipped."""

import os
import warnings
from collections.abc import Callable
from typing import TypeVar

Example = TypeVar("Example")


class BadLine(ValueError):
    """`file:line: reason`."""


def read_examples(path: str | os.PathLike, parse: Callable[[str], Example], skip_bad: bool = False) -> list[Example]:
    """Every line of a UTF-8 file, parsed.

    Args:
        parse: makes an example of a line, given without its end; raises ValueError, with the reason, for a bad one.
        skip_bad: leave bad lines out, with one warning that counts them.

    Raises:
        BadLine: a line is bad, or the file holds no good one.
        OSError: the file cannot be read.
    """
    examples, skipped, first = [], 0, None
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                examples.append(parse(line.decode("utf-8-sig").rstrip("\r\n")))
            except ValueError as error:  # a UnicodeDecodeError is one
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
                bad = BadLine(f"{path}:{number}: {reason}")
                if not skip_bad:
                    raise bad from None
                skipped, first = skipped + 1, first or bad
    if not examples:
        raise BadLine(f"{path}: no examples" + (f"; the first bad line is {first}" if first else ""))
    if skipped:
        warnings.warn(f"skipped {skipped} bad lines of {path}; the first is {first}", stacklevel=2)
    return examples
