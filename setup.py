"""Puts the top-level triton_kernels/ inside the package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

# A checkout finds the same folder through the symbolic link attnkern/triton_kernels.
KERNELS = "attnkern.triton_kernels"

setup(
    packages=[*find_packages(include=["attnkern", "attnkern.*"], exclude=[KERNELS, f"{KERNELS}.*"]), KERNELS],
    package_dir={KERNELS: "triton_kernels"},
)
