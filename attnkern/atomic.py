"""Files that appear whole, or not at all; whether they can is known before the work for them."""

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 2**20  # bytes that a disk must have left


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Another path to write to; what is there at the end takes this one's place. Makes the folder if there is none."""
    path = Path(os.path.realpath(path))  # of a link, what it names
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{path.name[-40:]}")  # with its suffix
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def check_output(path: Path, folder: bool = False) -> None:
    """That a file, or a folder of them, can be written there later. Leaves nothing behind.

    Raises:
        OSError: it cannot; the message says why.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and path.is_dir() != folder:
        number = errno.ENOTDIR if folder else errno.EISDIR
        raise OSError(number, os.strerror(number), str(path))
    if path.exists() and not (folder or path.is_file()):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    if path.exists() and not os.access(path, os.W_OK):  # it could be replaced, but is not meant to be
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    there = path if folder else path.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno), str(there)) from None
