"""What a run in a folder was begun with."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from attnkern.atomic import written
from attnkern.training.run import FILE, ResumeError


class Settings:
    """What decides a run's data and model. A run goes on with the same alone: with others, examples that it was trained
    on may count as held out.

        settings = Settings("runs/copy", data=path, seed=0)   # before anything is read
        settings.keep()                                       # before anything is written

    Args:
        folder: where `settings.json` is kept; the checkpoints are in it, or in folders of it.
        values: what JSON can say. A file counts by its content, a folder by its place.

    Raises:
        ResumeError: the folder has a run that was begun with other settings, or does not say with which.
        OSError: a file cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, **values: Any):
        self.path = Path(folder) / "settings.json"
        self.values = {name: _said(value) for name, value in values.items()}
        if not self.path.exists():
            if any(Path(folder).glob(FILE)) or any(Path(folder).glob(f"*/{FILE}")):
                raise ResumeError(f"{folder} holds a run without {self.path.name}: choose another folder")
            return
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
            names = sorted({*before, *self.values}, key=[*self.values, *before].index)
        except (TypeError, ValueError):
            raise ResumeError(f"{self.path} is damaged: choose another folder") from None
        pairs = ((name, before.get(name), self.values.get(name)) for name in names)
        if others := [f"{name} {was}, not {now}" for name, was, now in pairs if was != now]:
            raise ResumeError(f"{folder} holds a run with other settings ({'; '.join(others)}): choose another folder")

    def keep(self) -> None:
        if not self.path.exists():
            with written(self.path) as draft:
                draft.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")


def _said(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Path):
        if value.is_dir():
            return str(value.resolve())
        return f"sha256:{hashlib.sha256(value.read_bytes()).hexdigest()[:16]}"
    return json.loads(json.dumps(value))
