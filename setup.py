"""What pyproject.toml cannot say: where two folders belong, and that csrc/ is compiled as far as compilers allow."""

import os
import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

# A checkout finds the same folders through the symbolic links attnkern/triton_kernels and attnkern/bench.
FOLDERS = {"attnkern.triton_kernels": "triton_kernels", "attnkern.bench": "bench"}
CSRC = runpy.run_path(str(Path(__file__).parent / "csrc" / "build.py"))
COMPILERS = {"cpu": CSRC["find_compiler"], "cuda": CSRC["find_nvcc"]}
MODULES = [kind for kind, found in COMPILERS.items() if os.environ.get(f"ATTNKERN_{kind.upper()}") != "0" and found()]


class BuildKernels(build_ext):
    """Compiles the kernels with csrc/build.py; no GPU is needed."""

    def build_extension(self, ext):
        kind = ext.name.rpartition("_")[2]
        try:
            CSRC["build"](kind, Path(self.get_ext_fullpath(ext.name)).parent.absolute())
        except CSRC["CannotBuild"] as error:
            raise CompileError(f"{error} (ATTNKERN_{kind.upper()}=0 installs without these kernels)") from None


class WithLinks(sdist):
    """A source archive that runs where it is unpacked, as a checkout does: setuptools leaves links to folders out."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for name, folder in FOLDERS.items():
            Path(base_dir, *name.split(".")).symlink_to(Path("..", folder))


setup(
    packages=[*find_packages(include=["attnkern", "attnkern.*"], exclude=[f"{name}*" for name in FOLDERS]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={"attnkern.bench": ["page.html"]},
    ext_modules=[Extension(f"attnkern._{kind}", sources=[]) for kind in MODULES],
    cmdclass={"build_ext": BuildKernels, "sdist": WithLinks},
)
