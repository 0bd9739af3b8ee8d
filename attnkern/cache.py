"""Measurements that outlive the process: JSON files in `$ATTNKERN_CACHE_DIR`, by default `~/.cache/attnkern`."""

import json
import os
import warnings
from pathlib import Path

from attnkern.atomic import written


def folder() -> Path:
    chosen, caches = os.environ.get("ATTNKERN_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    return Path(chosen) if chosen else (Path(caches) if caches else Path.home() / ".cache") / "attnkern"


def read(name: str) -> dict:
    """All entries of a file; none, with a warning, if it cannot be read."""
    try:
        entries = json.loads((folder() / name).read_text())
        if isinstance(entries, dict):
            return entries
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    warn_unreadable(name)
    return {}


def warn_unreadable(name: str) -> None:
    warnings.warn(f"ignoring unreadable {folder() / name}; delete it to be rid of this warning", stacklevel=3)


def add(name: str, place: str, entry) -> None:
    """Adds one entry to a file, keeping what other processes wrote; never leaves half a file."""
    file = folder() / name
    try:
        with written(file) as draft:
            draft.write_text(json.dumps({**read(name), place: entry}, indent=1))
    except OSError as error:
        warnings.warn(f"cannot keep measurements in {file}: {error}", stacklevel=3)
