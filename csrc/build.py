"""Builds the Python modules of this folder with ninja: the kernels for sm_90a (nvcc), or their emulated twin (g++).

    python csrc/build.py cuda | emulated [--into FOLDER]

Needs pybind11 and ninja, and for `cuda` an nvcc (CUDA_HOME, PATH or /usr/local/cuda), but no GPU.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "attnkern"
NVCC_FLAGS = "-std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Xcompiler -fPIC,-fvisibility=hidden"
GXX_FLAGS = "-std=c++17 -O2 -fPIC -fvisibility=hidden -x c++"
if platform.machine() == "x86_64":
    GXX_FLAGS = f"-march=x86-64-v3 {GXX_FLAGS}"


class CannotBuild(RuntimeError):
    """Something that the build needs is not there; the message says what."""


def build(kind: str, into: Path = PACKAGE) -> Path:
    """Compiles `attnkern._cuda` or `attnkern._emulated` into a folder; returns the module's path.

    What is up to date stays; of several processes that build at once, one does and the others wait.

    Raises:
        CannotBuild: nvcc, ninja or pybind11 is missing, or the compilation failed.
    """
    import fcntl  # not on every system that can read this file

    module = into / f"_{kind}{sysconfig.get_config_var('EXT_SUFFIX')}"
    scratch = HERE / "build" / kind
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (scratch / "build.ninja").write_text(_recipe(kind, module))
        result = subprocess.run([*_ninja(), "-C", str(scratch)], stdout=sys.stderr)
    if result.returncode:
        raise CannotBuild(f"compiling attnkern._{kind} failed; the compiler's messages are above")
    return module


def find_nvcc() -> str | None:
    """The path of nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("nvcc", path=os.pathsep.join([*places[:-1], os.environ.get("PATH", ""), places[-1]]))


def _recipe(kind: str, module: Path) -> str:
    sources = sorted((HERE / "instances").glob("*.cu"))
    if kind == "cuda":
        compiler = find_nvcc()
        if compiler is None:
            raise CannotBuild("no nvcc in CUDA_HOME, PATH or /usr/local/cuda")
        flags, include = f"{NVCC_FLAGS} -x cu", f"-I{HERE}"
    else:
        compiler, flags, include = "g++", GXX_FLAGS, f"-I{HERE / 'emulator'} -I{HERE}"
        sources += sorted((HERE / "emulator").glob("*.cpp"))
    python = f"-DATTNKERN_MODULE=_{kind} -isystem {_pybind11()} -isystem {sysconfig.get_paths()['include']}"
    objects = {f"{source.stem}.o": source for source in sources}
    return "\n".join(
        [
            "rule compile",
            f"  command = {compiler} {flags} {include} $python -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",  # under another name first: a module that is in use, or half written, is never loaded
            f"  command = {compiler} -shared $in -o $out.draft && mv $out.draft $out",
            *(f"build {name}: compile {source}" for name, source in objects.items()),
            f"build binding.o: compile {HERE / 'binding.cpp'}",
            f"  python = {python}",  # only here: the kernels need not be compiled anew for another Python
            f"build {module}: link binding.o {' '.join(objects)}",
            "",
        ]
    )


def _pybind11() -> str:
    try:
        import pybind11

        return pybind11.get_include()
    except ImportError:
        raise CannotBuild("pybind11 is not installed: pip install pybind11") from None


def _ninja() -> list[str]:
    if found := shutil.which("ninja"):
        return [found]
    try:
        import ninja  # noqa: F401
    except ImportError:
        raise CannotBuild("ninja is not installed: pip install ninja") from None
    return [sys.executable, "-m", "ninja"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("cuda", "emulated"))
    parser.add_argument("--into", type=Path, default=PACKAGE, help="folder of the module (default: the package)")
    arguments = parser.parse_args()
    try:
        print(build(arguments.kind, arguments.into.resolve()))
    except CannotBuild as error:
        sys.exit(f"build: {error}")


if __name__ == "__main__":
    main()
