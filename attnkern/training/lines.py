"""Data files of one example a line."""

import warnings
from collections.abc import Callable
from os import PathLike
from typing import TypeVar

Example = TypeVar("Example")
NAMED = 3  # bad lines that the warning names


class BadLine(ValueError):
    """A line that cannot be read; the message is `file:line: reason`."""


def read_examples(path: str | PathLike, parse: Callable[[str], Example], skip_bad: bool = False) -> list[Example]:
    """What `parse` makes of each line (without its end) of a UTF-8 file.

    Args:
        parse: raises ValueError, saying why, for a line that it cannot read.
        skip_bad: leaves such lines out and warns how many there were, instead of raising.

    Raises:
        BadLine: the first line that cannot be read, unless skipped.
        OSError: nor can the file.
    """
    found, bad = [], []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(parse(line.decode().rstrip("\r\n")))
            except ValueError as error:  # UnicodeDecodeError is one
                bad.append(BadLine(f"{path}:{number}: {error}"))
                if not skip_bad:
                    raise bad[0] from None
    if bad:
        named = "; ".join(map(str, bad[:NAMED])) + ("; ..." if len(bad) > NAMED else "")
        warnings.warn(f"{len(bad)} of {number} lines skipped: {named}", stacklevel=2)
    return found
