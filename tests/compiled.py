"""The modules that csrc/ compiles to, brought up to date."""

import importlib
import runpy
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from attnkern.backends import choose

BUILD = runpy.run_path(str(Path(__file__).parent.parent / "csrc" / "build.py"))


def compiled(kind: str) -> ModuleType:
    """`attnkern._cuda` or `attnkern._emulated`; skips the test where there is no compiler for it."""
    if kind == "cuda" and BUILD["find_nvcc"]() is None:
        pytest.skip("needs nvcc")
    if kind == "emulated" and shutil.which("g++") is None:
        pytest.skip("needs g++")
    BUILD["build"](kind)
    choose.load.cache_clear()  # it may have been asked for before it was there
    importlib.invalidate_caches()
    return importlib.import_module(f"attnkern._{kind}")
