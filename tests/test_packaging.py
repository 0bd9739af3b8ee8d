"""What importing and installing the package must and must not do."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

QUIET = """
import sys
{statement}
import torch
found = [name for name in ("matplotlib", "rich", "transformers", "attnkern.triton_kernels") if name in sys.modules]
assert not found, found
assert not torch.cuda.is_initialized()
"""

WITHOUT_EXTRAS = """
import sys
sys.modules |= dict.fromkeys(["rich", "matplotlib", "transformers"])  # None: cannot be imported
from attnkern.__main__ import main
sys.exit(main(["info"]) or main(["explain"]))
"""


def succeeds(code: str) -> None:
    """Runs the code in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("statement", ["import attnkern", "import attnkern.__main__"])
def test_import_is_light(statement):
    """No plots, no models, no kernels, no GPU."""
    succeeds(QUIET.format(statement=statement))


def test_plain_commands_need_no_extra():
    succeeds(WITHOUT_EXTRAS)


def test_triton_kernels_are_ours():
    """The folder stands at the top level but is imported from inside the package: its own name belongs to another."""
    pytest.importorskip("triton")
    import attnkern.triton_kernels

    assert attnkern.triton_kernels.__name__ == "attnkern.triton_kernels"


def setup(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs setup.py; the CUDA toolkit is a fake in the folder, whose nvcc fails."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    environment = os.environ | {"CUDA_HOME": str(folder)} | environment
    command = [sys.executable, "setup.py", "-q", *command, "--build-lib", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_a_failing_cuda_build_says_so(tmp_path):
    done = setup(tmp_path, "build_ext")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: compiling attnkern._cuda failed")
    assert "ATTNKERN_CUDA=0" in done.stderr


def test_the_cuda_build_can_be_left_out(tmp_path):
    done = setup(tmp_path, "build_ext", ATTNKERN_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("_cuda*"))


def test_readme_examples_run(monkeypatch, tmp_path):
    """The README's Python, block after block; but for what loads from a hub."""
    monkeypatch.chdir(tmp_path)  # it writes files
    monkeypatch.setenv("ATTNKERN_CACHE_DIR", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) > 2
    names = {}
    for block in blocks:
        if "from_pretrained" not in block:
            exec(block, names)
    assert {file.name for file in tmp_path.glob("*.json")} >= {"profile.json", "profile.trace.json"}


def test_a_source_archive_holds_what_tests_need(tmp_path):
    """Every tracked file, the links among them, so that tests and commands run where it is unpacked."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: nothing says which files belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]
    checkout = tmp_path / "checkout"
    for name in tracked:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name, follow_symlinks=False)
    environment = os.environ | {"ATTNKERN_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "sdist"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (archive,) = (checkout / "dist").glob("attnkern-*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {entry.name.partition("/")[2]: entry for entry in opened.getmembers()}
    assert set(tracked) <= held.keys()
    for name in ("bench", "triton_kernels"):
        assert held[f"attnkern/{name}"].linkname == f"../{name}"
        assert f"attnkern/{name}/__init__.py" not in held
