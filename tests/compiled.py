"""The modules that csrc/ compiles to, brought up to date."""

import importlib
import runpy
from pathlib import Path
from types import ModuleType

import pytest

from attnkern.backends import choose

BUILD = runpy.run_path(str(Path(__file__).parent.parent / "csrc" / "build.py"))


def compiled(kind: str) -> ModuleType:
    """`attnkern._cuda` or `attnkern._emulated`; skips the test where there is no compiler for it."""
    compiler = {"cuda": "find_nvcc", "emulated": "find_compiler"}[kind]
    if BUILD[compiler]() is None:
        pytest.skip(f"needs {'nvcc' if kind == 'cuda' else 'a C++ compiler'}")
    BUILD["build"](kind)
    choose.load.cache_clear()  # it may have been asked for before it was there
    importlib.invalidate_caches()
    return importlib.import_module(f"attnkern._{kind}")
