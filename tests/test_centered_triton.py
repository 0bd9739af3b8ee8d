"""Local attention around learned centres in Triton's kernels, and those for CPUs; unseen keys hold NaN."""

import pytest
import torch

import attnkern
from attnkern.problem import Problem
from tests.cases import CPU, Case, check, check_extreme_centers, poison, run

pytest.importorskip("triton")

HEADS = {"batch": 2, "heads": (2, 1)}


def around(lengths, mask=None, sigma: float | None = 4.0, window=(3, 5), strided=False, heads=None, **options) -> Case:
    sizes = heads or {}
    return Case(lengths, mask=mask, strided=strided, weights=None, center=True, sigma=sigma, **sizes,
                options={"window": window} | options)  # fmt: skip


CASES = [
    around((1, 1)),
    around((1, 111), sigma=None),
    around((63, 65), sigma=None, is_causal=True, strided=True),
    around((65, 63), window=(0, 0), renormalize=True),
    around((111, 65), window=(-1, 4), is_causal=True, query_offset="end"),
    around((63, 111), window=(10, -1), dropout_p=0.3, seed=3, heads=HEADS),
    around((65, 111), "bool", renormalize=True, softcap=2.0, query_offset=torch.tensor([5, -40]), is_causal=True,
           heads=HEADS),
    around((65, 63), "float", window=(-1, -1), softcap=2.0),
    around((111, 63), "float per row", dropout_p=0.3, seed=3, renormalize=True),
    around((65, 111), "float per key"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_centers(case, device, poisoned_memory):
    check("local", case, ",".join([*CPU, "triton"]), torch.float32, device)


def test_centers_in_bfloat16(device, poisoned_memory):
    """Centres and sigmas stay float32, so there is no naive computation in bfloat16 to hold it to."""
    case = around((63, 65), renormalize=True)
    tensors = case.tensors(torch.bfloat16, device)
    exact = run("local", tensors, case, "reference")
    for name, got in run("local", poison(case, tensors), case, "triton").items():
        wanted = exact[name].masked_fill(exact[name].isinf(), 0.0)
        error = got.masked_fill(got.isinf(), 0.0) - wanted
        assert error.float().norm() <= 0.02 * wanted.float().norm(), name


@pytest.mark.parametrize("renormalize", [False, True])
def test_extreme_numbers_stay_finite(device, renormalize):
    """Centres at and around whole numbers, past the ends, infinite and NaN; sigma tiny and huge."""
    check_extreme_centers("triton", torch.float32, device, renormalize)


def test_cost_follows_the_windows(monkeypatch):
    """However the centres scatter, a tile of queries meets few tiles of keys, and the other way round."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter's products are counted")
    from triton.runtime import interpreter

    products, count = interpreter.InterpreterBuilder.create_dot, 0

    def counted(*args):
        nonlocal count
        count += 1
        return products(*args)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
    length = 640
    leaves = [torch.randn(1, 1, length, 16, requires_grad=True) for _ in range(3)]
    center = (torch.randperm(length) + 0.5).view(1, 1, length).requires_grad_()
    output = attnkern.local_attention(*leaves, window=(3, 3), center=center, sigma=2.0, backend="triton")
    tiles = 3 * length // 64 - 2  # each of queries its own of keys, and its neighbours
    assert count == 2 * tiles
    output.sum().backward()
    assert count == (2 + 2 + 3 + 4) * tiles  # forward, means, queries, keys


def test_weights_are_refused():
    problem = Problem(len_q=8, center=True, weights="mean", device="cpu")
    with pytest.raises(attnkern.UnsupportedProblem, match="no attention weights around learned centres"):
        attnkern.local_attention(
            *[torch.randn(1, 1, 8, 16)] * 3, window=(2, 2), center=torch.zeros(1, 1, 8), backend="triton",
            return_aux=attnkern.AuxRequest(weights=problem.weights),
        )  # fmt: skip
