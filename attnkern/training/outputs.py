"""Where results go, and pictures."""

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from attnkern.atomic import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOM = 2**20  # bytes that a disk must have left


def check_output(path: Path, folder: bool = False) -> None:
    """That a file, or a folder of them, can be written there later. Leaves nothing behind.

    Raises:
        OSError: it cannot; the message says why.
    """
    if path.exists() and path.is_dir() != folder:
        number = errno.ENOTDIR if folder else errno.EISDIR
        raise OSError(number, os.strerror(number), str(path))
    if path.exists() and not (folder or path.is_file()):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    there = path if folder else path.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno), str(there)) from None


def has_matplotlib() -> bool:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(path: Path, width: float, height: float) -> "Figure | None":
    """Of that many inches, to draw on; None, and a line that says so, where matplotlib is not installed."""
    if not has_matplotlib():
        print(f"not drawn: {path} needs matplotlib (pip install matplotlib)")
        return None
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Appears whole or not at all, and says where."""
    with written(path) as draft:
        figure.savefig(draft, format=path.suffix[1:], dpi=110)
    print(f"drawn: {path}")
