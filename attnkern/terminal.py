"""How a program ends whose output cannot be written, or need not be."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Parser(argparse.ArgumentParser):
    """One that does not hide that its help could not be written."""

    def _print_message(self, message: str, file=None) -> None:
        (file or sys.stderr).write(message)


@contextmanager
def ending(name: str, *expected: type[Exception]) -> Iterator[None]:
    """All that was printed is written by the end. What goes wrong as expected is said in a line.

    Raises:
        SystemExit: 1 where standard output's reader has read enough; the line, for one of `expected` or OSError.
    """
    if sys.stdout is None:  # closed before the start
        raise SystemExit(f"{name}: standard output is closed")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        raise SystemExit(1) from None
    except (OSError, *expected) as error:
        raise SystemExit(f"{name}: {error}") from None
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # said above; the interpreter would say it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
