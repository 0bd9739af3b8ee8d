"""Sums over tiles, without a walk over them, are those of the walk; and sizes that nobody has are answered at once."""

import itertools

import pytest

from attnkern import Problem, mac
from attnkern.mac import steps

BANDS = list(itertools.product((-1, 0, 3, 70, 900), repeat=2))


@pytest.fixture
def walked(monkeypatch):
    def count(*arguments, **options):
        with monkeypatch.context() as patched:
            patched.setattr(
                steps, "total", lambda value, length, step, *_, **__: sum(map(value, range(0, length, step)))
            )
            return mac.passes(*arguments, **options), mac.count(*arguments, **options)

    return count


@pytest.mark.parametrize("window", BANDS)
@pytest.mark.parametrize("offset", [0, 37, -1500, "end"])
def test_sums_are_those_of_the_walk(window, offset, walked):
    for len_q, len_k, causal, selector in itertools.product((5, 6001), (1, 5003), (False, True), ("softmax", "sample")):
        offset_here = len_k - len_q if offset == "end" else offset
        problem = Problem(
            len_q=len_q, len_k=len_k, window=window, causal=causal, selector=selector, query_offset=offset_here
        )
        for which, backend in itertools.product(("forward", "backward"), ("blocked", "triton", None)):
            found = mac.passes(problem, which, backend=backend), mac.count(problem, which, backend=backend)
            assert found == walked(problem, which, backend=backend)


@pytest.mark.parametrize("length", [10**10, 2**62])
@pytest.mark.parametrize("choices", [{}, {"window": (5, 5)}, {"causal": True}, {"window": (2**40, 3), "causal": True}])
@pytest.mark.parametrize("selector", ["softmax", "sample"])
def test_absurd_lengths_are_counted_at_once(length, choices, selector):
    problem = Problem(len_q=length, selector=selector, batch=2**20, **choices)
    count = mac.count(problem, "training", backend="blocked")
    assert count.issued_macs >= problem.pairs() > 0
