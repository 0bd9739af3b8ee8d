"""Local attention around learned centres (local-p), tile by tile: held to the reference, gradients and all."""

import math

import pytest
import torch
from torch.autograd import grad

import attnkern
from attnkern import AuxRequest
from attnkern.backends import tiles
from attnkern.budget import Budget
from tests.cases import CPU, check_results

NAN = float("nan")
BATCH, HEADS, KV_HEADS, LEN_Q, LEN_K = 2, 4, 2, 111, 150


def tensors(len_q=LEN_Q, len_k=LEN_K, mask=None, spread=1.0, dtype=torch.float64):
    """Query, key, value, center, sigma, mask; centres scatter over the sequence and past its ends."""
    generator = torch.Generator().manual_seed(len_q + len_k)

    def normal(*shape):
        return torch.randn(shape, dtype=dtype, generator=generator)

    def uniform(*shape):
        return torch.rand(shape, dtype=torch.float64, generator=generator).to(torch.promote_types(dtype, torch.float32))

    center = uniform(BATCH, HEADS, len_q) * (len_k + 20) * spread - 10
    masks = {
        "bool": lambda: normal(BATCH, 1, len_q, len_k) > -0.5,
        "float": lambda: normal(1, HEADS, len_q, len_k),
        "per row": lambda: normal(1, HEADS, len_q, 1),
        "per key": lambda: normal(BATCH, 1, 1, len_k),
    }
    return {
        "query": normal(BATCH, HEADS, len_q, 16),
        "key": normal(BATCH, KV_HEADS, len_k, 16),
        "value": normal(BATCH, KV_HEADS, len_k, 24),
        "center": center,
        "sigma": uniform(BATCH, HEADS, len_q) * 4 + 0.5,
    } | ({"attn_mask": masks[mask]()} if mask else {})


def results(given: dict, backend, **options):
    """Output, lse, and the gradients of a random loss of both."""
    given = {name: x.detach().requires_grad_(x.dtype.is_floating_point) for name, x in given.items()}
    output, aux = attnkern.local_attention(
        **given, enable_gqa=True, return_aux=AuxRequest(lse=True), backend=backend, **options
    )
    lse = torch.where(aux.lse.isfinite(), aux.lse, 0.0)
    weights = (torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in (output, lse))
    loss = sum((x * weight).sum() for x, weight in zip((output, lse), weights))
    leaves = {name: x for name, x in given.items() if x.requires_grad}
    grads = grad(loss, list(leaves.values()), allow_unused=True)
    return {"output": output, "lse": aux.lse} | {f"grad_{name}": x for name, x in zip(leaves, grads)}


def check(given: dict, tolerance=1e-11, **options):
    found, expected = results(given, "blocked", **options), results(given, "reference", **options)
    for name, wanted in expected.items():
        if wanted is None:
            assert found[name] is None
            continue
        scale = 1 + wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 1
        torch.testing.assert_close(
            found[name], wanted, rtol=0, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


WINDOWS = [(3, 5), (-1, 4), (10, -1), (-1, -1), (0, 0), (2**27, 3), (2, 2**27)]


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows(window, renormalize):
    check(tensors(), window=window, renormalize=renormalize)


OPTIONS = {
    "causal": {"is_causal": True},
    "causal end": {"is_causal": True, "query_offset": "end"},
    "offsets": {"is_causal": True, "query_offset": torch.tensor([5, -40])},
    "dropout": {"dropout_p": 0.3, "seed": 3},
    "softcap": {"softcap": 2.0},
}


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, renormalize):
    check(tensors(), window=(6, 4), renormalize=renormalize, **OPTIONS[options])


@pytest.mark.parametrize("window", [(6, 4), (-1, 2)], ids=str)
@pytest.mark.parametrize("mask", ["bool", "float", "per row", "per key"])
def test_masks(mask, window):
    check(tensors(mask=mask), window=window, renormalize=True)


@pytest.mark.parametrize(("len_q", "len_k"), [(1, 1), (63, 1), (1, 111), (65, 1000), (300, 63)])
def test_lengths(len_q, len_k):
    check(tensors(len_q, len_k), window=(5, 5))


@pytest.mark.parametrize("kilobytes", [1, 30, 150])
@pytest.mark.parametrize("len_q", [32, 33, 300])
def test_heads_in_several_blocks(kilobytes, len_q, monkeypatch):
    """Parts of a head, of several, of a batch: each row comes back where it belongs."""
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", kilobytes << 10)
    check(tensors(len_q, 200), window=(5, 5))


def test_rows_in_pieces_of_memory():
    """Features apart from each other, rows and heads that are one, and a gradient that is one number."""
    given = tensors()
    given["key"] = given["key"].mT.contiguous().mT
    given["query"] = given["query"].mT.contiguous().mT
    given["value"] = given["value"][:, :1].expand_as(given["value"])
    check(given, window=(6, 4))
    gradients = []
    for backend in ("blocked", "reference"):
        query = given["query"].detach().requires_grad_()
        options = {"enable_gqa": True, "backend": backend, "window": (6, 4)}
        output = attnkern.local_attention(**given | {"query": query}, **options)
        gradients += grad(output.sum(), query)
    torch.testing.assert_close(*gradients)


def test_no_keys(poisoned_memory):
    check(tensors(5, 0), window=(2, 2), renormalize=True)


def test_long_rows_take_several_tiles():
    check(tensors(3, 1500), window=(600, 500))


@pytest.mark.parametrize("window", [(-1, 2), (2, -1), (2, 2)], ids=str)
def test_centres_that_are_no_number_see_nothing(window):
    given = tensors()
    del given["sigma"]
    given["center"][..., ::3] = NAN
    options = {"enable_gqa": True, "window": window}
    found, expected = (attnkern.local_attention(**given, backend=name, **options) for name in ("blocked", "reference"))
    torch.testing.assert_close(found, expected)
    assert not found[..., ::3, :].any()


def test_windows_without_a_gaussian_move_no_centre():
    given = tensors()
    del given["sigma"]
    check(given, window=(4, 4))
    assert results(given, "blocked", window=(4, 4))["grad_center"] is None


def test_a_gaussian_around_the_aligned_position():
    given = tensors()
    del given["center"]
    check(given, window=(5, 5), query_offset=7)


def test_float32_errs_as_naive_float32_does():
    given = tensors(dtype=torch.float32)

    def naive(dtype):
        return results({name: x.to(dtype) for name, x in given.items()}, "reference", window=(10, 10))

    check_results(Budget(naive, torch.float32), results(given, "blocked", window=(10, 10)))


FAR = {
    "past the end": (lambda x: x["center"] * 10 + 600, {"window": (-1, -1)}),
    "before the keys": (lambda x: -1000 - x["center"], {"window": (-1, -1)}),
    "ahead of a causal query": (lambda x: x["center"] + 150, {"window": (-1, -1), "is_causal": True}),
    "between two keys": (lambda x: x["center"].round() - 0.5 + x["center"] * 1e-6, {"window": (3, 3)}),
}


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
@pytest.mark.parametrize("case", FAR)
def test_exponents_that_keys_share_cost_no_precision(case, backend):
    """Every key many sigmas away, in float32: what sets them apart is small beside what they have in common."""
    given = tensors(33, 60, dtype=torch.float32)
    given["center"], options = FAR[case][0](given).float(), FAR[case][1]
    given["sigma"] = torch.full_like(given["center"], 0.01 if case == "between two keys" else 12)
    exact = results({name: x.double() for name, x in given.items()}, "reference", renormalize=True, **options)
    found = results(given, backend, renormalize=True, **options)
    for name, wanted in exact.items():
        error = (found[name].nan_to_num(neginf=0) - wanted.nan_to_num(neginf=0)).norm() / wanted.nan_to_num(
            neginf=0
        ).norm()
        assert error < 1e-6, (name, error)


@pytest.mark.parametrize("renormalize", [False, True])
def test_nothing_to_look_at(renormalize):
    """Every centre far outside: output 0, lse -inf, gradients 0."""
    given = tensors() | {"center": torch.full((BATCH, HEADS, LEN_Q), -1e9, dtype=torch.float64)}
    found = results(given, "blocked", window=(3, 3), renormalize=renormalize)
    assert (found.pop("lse") == -math.inf).all() and all((x == 0).all() for x in found.values())


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("blocked", torch.float32), ("blocked", torch.float64), ("reference", torch.float64)]
)
def test_extreme_numbers_stay_finite(backend, renormalize, dtype):
    """Centres at and around whole numbers, at and past the ends; sigma tiny and huge."""
    given = tensors(12, 20, dtype=dtype)
    center = torch.tensor([-1e30, -5, -1e-9, 0, 3, 4 - 1e-9, 4, 4 + 1e-9, 19.5, 20, 1e30, 7])
    given["center"] = center.to(dtype).expand(BATCH, HEADS, 12).contiguous()
    for sigma in (1e-30, 1e-3, 1e30):
        given["sigma"] = torch.full_like(given["center"], sigma)
        found = results(given, backend, window=(2, 2), renormalize=renormalize)
        assert all(x.isfinite().all() for name, x in found.items() if name != "lse")


@pytest.mark.parametrize("place", ["anywhere", "end"])
def test_unseen_keys_have_no_influence(place):
    """Keys between and beyond windows hold NaN: where they scatter, and where heads look at few or many of the last."""
    given = tensors(20, 400)
    if place == "end":
        wide = torch.arange(given["center"].shape[1])[:, None]
        given["center"] = 398 - 4 * wide * torch.rand(given["center"].shape)
    j = torch.arange(400)
    middle = given["center"].floor()[..., None]
    seen = ((j >= middle - 3) & (j <= middle + 3)).any(2).unflatten(1, (KV_HEADS, -1)).any(2)[..., None]
    assert not seen.all(1).all()
    poisoned = given | {name: given[name].masked_fill(~seen, NAN) for name in ("key", "value")}
    found, expected = (results(x, "blocked", window=(3, 3)) for x in (poisoned, given))
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted)


def test_gradients_of_the_definition():
    """gradcheck, with windows that no difference quotient moves; second derivatives too."""
    given = tensors(3, 7)
    given["center"] = given["center"].floor() + 0.5
    names = list(given)

    def call(*values):
        return attnkern.local_attention(**dict(zip(names, values)), window=(3, 2), enable_gqa=True)

    leaves = [x.requires_grad_() for x in given.values()]
    torch.autograd.gradcheck(call, leaves, atol=1e-6, fast_mode=True)
    torch.autograd.gradgradcheck(call, [x[:1] for x in leaves], atol=1e-5, fast_mode=True)


def test_compiles_and_maps():
    given = tensors(8, 16, dtype=torch.float32)

    def call(query, center):
        return attnkern.local_attention(query, given["key"], given["value"], window=(3, 3), center=center, sigma=2.0,
                                        enable_gqa=True)  # fmt: skip

    expected = call(given["query"], given["center"])
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given["query"], given["center"]), expected)
    queries, centers = (torch.stack([x, x.flip(0)]) for x in (given["query"], given["center"]))
    mapped = torch.func.vmap(call)(queries, centers)
    torch.testing.assert_close(mapped[0], expected)
    torch.testing.assert_close(mapped[1], call(queries[1], centers[1]))


def test_the_operations_are_sound():
    given = tensors(9, 20)
    arguments = [given[name] for name in ("query", "key", "value")]
    arguments += [*[None] * 5, given["center"], given["sigma"]]
    options = (0.25, 0.0, False, 3, 3, 0, 9, 20, False, 0.0, "blocked")
    leaves = [x.requires_grad_() if x is not None else None for x in arguments]
    torch.library.opcheck(
        torch.ops.attnkern.centered_attention.default, (*leaves, *options),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip
