"""Files of settings: one JSON object each."""

import json
from pathlib import Path


def read_object(path: Path) -> dict:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(said).__name__}")
    return said
