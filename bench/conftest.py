"""`pytest bench`: the suites' rows as a pytest-benchmark suite, one test for each implementation of each row."""

import pytest
import torch

from attnkern import mac
from attnkern.bench import measure, run
from attnkern.bench.problems import SUITES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUICK = "small,decode"


def pytest_addoption(parser):
    parser.addoption("--suite", default=QUICK, help=f"some of {', '.join(SUITES)}, with commas (default: {QUICK})")


def pytest_generate_tests(metafunc):
    if "contender" not in metafunc.fixturenames:
        return
    backends, peers = run.BACKENDS[DEVICE], run.peers_here()
    cases = [
        pytest.param(row, contender, id=f"{row.name}: {contender.name}")
        for suite in run.names("suite", metafunc.config.getoption("--suite"), SUITES)
        for row in SUITES[suite](DEVICE)
        for contender in measure.family(row).contenders(row, DEVICE, backends, peers)
    ]
    metafunc.parametrize("row, contender", cases)


@pytest.fixture(scope="session")
def limits():
    return mac.roofs(DEVICE)


@pytest.fixture
def device() -> str:
    return DEVICE
