"""What the command line can do, one module per command.

add_arguments(parser)   declares its options
run(arguments)          does it and returns the exit code
"""

from pathlib import Path

from attnkern.atomic import check_output


class CommandError(Exception):
    """Something the user can put right; the message is one line that says what to do. Exit code 2."""


def check_file(option: str, path: Path) -> None:
    """Refuses before the work for it what could not be written after it."""
    try:
        check_output(path)
    except OSError as error:
        raise CommandError(f"{option} {path} cannot be written: {error.filename}: {error.strerror}") from None
