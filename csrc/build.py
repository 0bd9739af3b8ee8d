"""Builds the Python modules of this folder with ninja: kernels for CPUs, for sm_90a, and the latter's emulated twin.

    python csrc/build.py cpu | cuda | emulated [--into FOLDER]

Needs pybind11 and ninja; `cpu` and `emulated` a C++ compiler (CXX, g++ or clang++), `cuda` an nvcc (CUDA_HOME, PATH or
/usr/local/cuda), but no GPU.
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
CPU_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno"
ON_ARM = platform.machine() in ("aarch64", "arm64")
# Of csrc/cpu's kernels, each compiled on its own. The one that every machine can run is linked first: of an inline
# function that none of them has for itself (the standard library's), that one's copy serves all.
INSTRUCTION_SETS = {"neon" if ON_ARM else "plain": ""}
if platform.machine() in ("x86_64", "AMD64"):
    GXX_FLAGS = f"-march=x86-64-v3 {GXX_FLAGS}"
    AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512"
    INSTRUCTION_SETS |= {
        "avx2": "-mavx2 -mfma",
        "avx512": AVX512,
        "avx512_bf16": f"{AVX512} -mavx512bf16",
        "amx": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
    }


class CannotBuild(RuntimeError):
    """Something that the build needs is not there; the message says what."""


def build(kind: str, into: Path = PACKAGE) -> Path:
    """Compiles `attnkern._cpu`, `_cuda` or `_emulated` into a folder; returns the module's path.

    What is up to date stays; of several processes that build at once, one does and the others wait.

    Raises:
        CannotBuild: a compiler, ninja or pybind11 is missing, or the compilation failed.
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


def find_compiler() -> str | None:
    """The C++ compiler: CXX where that is set, else g++ or clang++; None if there is none."""
    return shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")


def _recipe(kind: str, module: Path) -> str:
    compiler, objects = {"cpu": _cpu, "cuda": _cuda, "emulated": _emulated}[kind]()
    python = f"-DATTNKERN_MODULE=_{kind} -isystem {_pybind11()} -isystem {sysconfig.get_paths()['include']}"
    lines = [
        "rule compile",
        f"  command = {compiler} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",  # under another name first: a module that is in use, or half written, is never loaded
        f"  command = {compiler} -shared $in -o $out.draft && mv $out.draft $out",
    ]
    for name, (source, flags) in objects.items():
        # Python only for the binding: the kernels need not be compiled anew for another one
        lines += [f"build {name}.o: compile {source}", f"  flags = {flags} {python if name == 'binding' else ''}"]
    lines += [f"build {module}: link {' '.join(f'{name}.o' for name in objects)}", ""]
    return "\n".join(lines)


Objects = dict[str, tuple[Path, str]]  # by name: its source, and flags


def _cpu() -> tuple[str, Objects]:
    folder = HERE / "cpu"
    objects = {name: (folder / f"{name}.cpp", CPU_FLAGS) for name in ("parallel", "binding")}
    kernels = {
        name: (folder / "kernels.cpp", f"{CPU_FLAGS} -DISA={name} {own}") for name, own in INSTRUCTION_SETS.items()
    }
    return _compiler(), kernels | objects


def _cuda() -> tuple[str, Objects]:
    compiler = find_nvcc()
    if compiler is None:
        raise CannotBuild("no nvcc in CUDA_HOME, PATH or /usr/local/cuda")
    return compiler, _kernels(f"{NVCC_FLAGS} -x cu -I{HERE}")


def _emulated() -> tuple[str, Objects]:
    flags = f"{GXX_FLAGS} -I{HERE / 'emulator'} -I{HERE}"
    emulator = {source.stem: (source, flags) for source in sorted((HERE / "emulator").glob("*.cpp"))}
    return _compiler(), _kernels(flags) | emulator


def _kernels(flags: str) -> Objects:
    sources = [*sorted((HERE / "instances").glob("*.cu")), HERE / "binding.cpp"]
    return {source.stem: (source, flags) for source in sources}


def _compiler() -> str:
    compiler = find_compiler()
    if compiler is None:
        raise CannotBuild("no C++ compiler: CXX, g++ or clang++")
    return compiler


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
    parser.add_argument("kind", choices=("cpu", "cuda", "emulated"))
    parser.add_argument("--into", type=Path, default=PACKAGE, help="folder of the module (default: the package)")
    arguments = parser.parse_args()
    try:
        print(build(arguments.kind, arguments.into.resolve()))
    except CannotBuild as error:
        sys.exit(f"build: {error}")


if __name__ == "__main__":
    main()
