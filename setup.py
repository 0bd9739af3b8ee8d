"""What pyproject.toml cannot say: where triton_kernels/ belongs, and that csrc/ is compiled if there is an nvcc."""

import os
import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# A checkout finds the same folder through the symbolic link attnkern/triton_kernels.
KERNELS = "attnkern.triton_kernels"
CSRC = runpy.run_path(str(Path(__file__).parent / "csrc" / "build.py"))
WITH_CUDA = os.environ.get("ATTNKERN_CUDA") != "0" and CSRC["find_nvcc"]() is not None


class BuildKernels(build_ext):
    """Compiles the CUDA C++ kernels with csrc/build.py; no GPU is needed."""

    def build_extension(self, ext):
        try:
            CSRC["build"]("cuda", Path(self.get_ext_fullpath(ext.name)).parent.absolute())
        except CSRC["CannotBuild"] as error:
            raise CompileError(f"{error} (ATTNKERN_CUDA=0 installs without the CUDA kernels)") from None


setup(
    packages=[*find_packages(include=["attnkern", "attnkern.*"], exclude=[KERNELS, f"{KERNELS}.*"]), KERNELS],
    package_dir={KERNELS: "triton_kernels"},
    ext_modules=[Extension("attnkern._cuda", sources=[])] if WITH_CUDA else [],
    cmdclass={"build_ext": BuildKernels},
)
