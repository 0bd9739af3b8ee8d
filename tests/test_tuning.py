"""The table of tiles, and the measurements that outlive the process."""

import itertools
import json

import pytest
import torch
from triton.runtime.errors import OutOfResources

from attnkern import Problem
from attnkern.backends import launching, tuning
from attnkern.backends.tuning import Config

PROBLEM = Problem(len_q=4096, head_dim=64, dtype=torch.float16, device="cuda")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNKERN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("ATTNKERN_TUNE", raising=False)
    tuning._known.cache_clear()
    yield tmp_path
    tuning._known.cache_clear()


def choose(times=None, problem=PROBLEM):
    measured = []

    def measure(config):
        measured.append(config)
        if times is None or config not in times:
            raise RuntimeError("out of shared memory")
        return times[config]

    return tuning.config("softmax_forward", problem, "GPU", 90, measure), measured


def test_the_tables_first_entry_is_the_default():
    row = tuning.candidates("softmax_forward", PROBLEM, 90)
    assert choose() == (row[0], [])


def test_every_kernel_has_a_row_for_every_head_size_dtype_and_gpu():
    for kernel in tuning.SIXTEEN_BIT:
        for head_dim in (16, 40, 64, 80, 128, 192, 256):
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                for capability in (80, 90, 100, 120):
                    problem = Problem(len_q=8, head_dim=head_dim, dtype=dtype)
                    assert tuning.candidates(kernel, problem, capability)


def test_a_measurement_survives_the_process(monkeypatch, cache_folder):
    monkeypatch.setenv("ATTNKERN_TUNE", "1")
    row = tuning.candidates("softmax_forward", PROBLEM, 90)
    with pytest.warns(UserWarning, match="does not run here"):  # the first candidate does not fit
        best, measured = choose({row[1]: 2.0, row[2]: 1.0})
    assert best == row[2] and measured == list(row)
    assert choose() == (row[2], [])
    monkeypatch.delenv("ATTNKERN_TUNE")
    tuning._known.cache_clear()  # as a new process would start
    assert choose() == (row[2], [])
    other = Problem(len_q=64, head_dim=64, dtype=torch.float16, device="cuda")
    assert choose(problem=other) == (row[0], [])
    assert [path.name for path in cache_folder.iterdir()] == ["tuning.json"]


def test_two_processes_keep_each_others_results(monkeypatch, cache_folder):
    monkeypatch.setenv("ATTNKERN_TUNE", "1")
    file = cache_folder / "tuning.json"
    tuning._known()  # read before the other process writes
    file.write_text(json.dumps({"somewhere else": [1, 2, 3, 4]}))
    choose(dict.fromkeys(tuning.candidates("softmax_forward", PROBLEM, 90), 1.0))
    assert len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize("content", ["", "{", '{"a": 3}', "[1]"])
def test_a_corrupt_cache_is_ignored_with_a_warning(cache_folder, content):
    (cache_folder / "tuning.json").write_text(content)
    with pytest.warns(UserWarning, match="unreadable .*tuning.json"):
        assert choose()[0] == tuning.candidates("softmax_forward", PROBLEM, 90)[0]


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNKERN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("ATTNKERN_TUNE", "1")
    with pytest.warns(UserWarning):
        choose(dict.fromkeys(tuning.candidates("softmax_forward", PROBLEM, 90), 1.0))


def test_nothing_fits_leaves_the_default(monkeypatch):
    monkeypatch.setenv("ATTNKERN_TUNE", "1")
    with pytest.warns(UserWarning):
        assert choose()[0] == Config(*tuning.candidates("softmax_forward", PROBLEM, 90)[0])


class Kernel:
    """Runs with some configs; with others a multiprocessor's memory is too small."""

    __name__ = "softmax_forward"
    arg_names = ("query", "BLOCK_M", "BLOCK_N")

    def __init__(self, *fit: Config):
        self.fit, self.tried = fit, []

    def __getitem__(self, grid):
        return self.run

    def run(self, query, BLOCK_M, BLOCK_N, num_warps, num_stages):
        self.tried.append(Config(BLOCK_M, BLOCK_N, num_warps, num_stages))
        if self.tried[-1] not in self.fit:
            raise OutOfResources(300000, 232448, "shared memory")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(launching, "_gpu", lambda: ("GPU", 90))


def test_a_tile_that_does_not_fit_gives_way_to_one_that_does(as_on_a_gpu):
    row = tuning.candidates("softmax_forward", PROBLEM, 90)
    kernel = Kernel(row[2])
    for _ in range(2):  # the second launch knows
        launching.launch(kernel, lambda _: 1, PROBLEM, {"query": torch.zeros(1)})
    assert kernel.tried == [row[0], row[1], row[2], row[2]]


def test_where_no_tile_fits_triton_says_so(as_on_a_gpu):
    with pytest.raises(OutOfResources):
        launching.launch(Kernel(), lambda _: 1, PROBLEM, {"query": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [None, "float"])
def test_a_step_of_decoding_has_tiles(dtype, mask):
    """Both of its kernels, whatever the numbers are."""
    problem = Problem(len_q=1, len_k=4096, dtype=dtype, mask=mask, device="cuda")
    for kernel, capability in itertools.product(("softmax_forward", "combine_splits"), (80, 90, 100)):
        assert tuning.candidates(kernel, problem, capability)
