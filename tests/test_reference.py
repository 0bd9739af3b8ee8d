"""The definition itself: against torch's own attention, and by finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from attnkern import reference

SEED = torch.tensor(11)


def tensors(*lengths, dims=(3, 4), heads=(2, 1)):
    torch.manual_seed(0)
    len_q, len_k = lengths
    shapes = ((2, heads[0], len_q, dims[0]), (2, heads[1], len_k, dims[0]), (2, heads[1], len_k, dims[1]))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_equals_torch():
    query, key, value = tensors(9, 12, heads=(4, 2))
    mask = torch.randn(2, 1, 9, 12, dtype=torch.float64)
    got, lse, weights = reference.softmax_attention(query, key, value, mask)
    expected = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(got, expected)
    scores = query @ key.repeat_interleave(2, 1).mT / math.sqrt(3) + mask
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    torch.testing.assert_close(weights, scores.softmax(-1))


def test_causal_is_torchs_when_rectangular():
    query, key, value = tensors(5, 8, heads=(1, 1))
    got = reference.softmax_attention(query, key, value, is_causal=True)[0]
    torch.testing.assert_close(got, F.scaled_dot_product_attention(query, key, value, is_causal=True))


def test_window_follows_the_offset():
    score = reference.scores(*tensors(4, 9)[:2], window=(1, 2), query_offset=torch.tensor([0, 3]))
    seen = (score > -math.inf)[:, 0].nonzero().tolist()
    expected = [[b, i, j] for b, off in ((0, 0), (1, 3)) for i in range(4) for j in range(9) if -1 <= j - i - off <= 2]
    assert seen == expected


@pytest.mark.parametrize(
    "name", ["plain", "causal", "window", "softcap", "dropout", "gaussian", "renormalized", "empty"]
)
def test_gradcheck(name):
    options = {
        "plain": {},
        "causal": {"is_causal": True, "query_offset": 2},
        "window": {"window": (1, 1)},
        "softcap": {"softcap": 1.5},
        "dropout": {"dropout_p": 0.4, "seed": SEED},
        "gaussian": {"window": (2, 2)},
        "renormalized": {"window": (2, 2), "renormalize": True},
        "empty": {"window": (0, 0), "query_offset": -2},
    }[name]
    query, key, value = tensors(4, 6)
    extra = [torch.randn(1, 2, 1, 6, dtype=torch.float64, requires_grad=True)]
    if name in ("gaussian", "renormalized"):  # centres away from integers: the window must not move
        extra += [torch.tensor([[[0.4, 1.5, 2.6, 4.3]]], dtype=torch.float64, requires_grad=True)]
        extra += [torch.full((1, 1, 4), 1.3, dtype=torch.float64, requires_grad=True)]

    def run(query, key, value, mask, center=None, sigma=None):
        output, lse, weights = reference.softmax_attention(
            query, key, value, mask, center=center, sigma=sigma, **options
        )
        return output, torch.where(lse == -math.inf, 0.0, lse), weights

    assert torch.autograd.gradcheck(run, (query, key, value, *extra))
    if name in ("plain", "softcap"):
        assert torch.autograd.gradgradcheck(run, (query, key, value, *extra))


@pytest.mark.parametrize("straight_through", [False, True])
def test_hard_gradcheck(straight_through):
    query, key, value = tensors(3, 70)
    options = {"num_samples": 2, "window": (-1, 66)}
    index = reference.hard_attention(query, key, value, seed=SEED, **options).index

    def run(query, key, value):
        hard = reference.hard_attention(query, key, value, index=index, **options)
        return hard.output, hard.score, hard.lse, hard.entropy

    assert torch.autograd.gradcheck(run, (query, key, value), fast_mode=True)
    if straight_through:  # finite differences of the draw are 0; the soft output's gradient is what passes
        hard = reference.hard_attention(query, key, value, index=index, straight_through=True, **options)
        soft = reference.softmax_attention(query, key, value, window=(-1, 66))[0]
        got = torch.autograd.grad(hard.output.sum(), (query, key))
        torch.testing.assert_close(got, torch.autograd.grad(2 * soft.sum(), (query, key)))


def test_local_p_as_luong_writes_it():
    """Softmax over the window, times the Gaussian, not renormalised."""
    query, key, value = tensors(5, 20, heads=(1, 1))
    center = torch.tensor([[[3.7, 0.2, 19.5, 8.0, 11.1]]], dtype=torch.float64)
    output, _, weights = reference.softmax_attention(query, key, value, center=center, sigma=2.0, window=(4, 4))
    scores = query @ key.mT / math.sqrt(3)
    j = torch.arange(20)
    outside = (j < center.floor()[..., None] - 4) | (j > center.floor()[..., None] + 4)
    expected = scores.masked_fill(outside, -math.inf).softmax(-1) * torch.exp(-((j - center[..., None]) ** 2) / 8)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, expected @ value)


def test_entropy_of_a_uniform_row():
    query, key, value = tensors(2, 8)
    hard = reference.hard_attention(query * 0, key, value, seed=SEED)
    torch.testing.assert_close(hard.entropy, torch.full((2, 2, 2), math.log(8), dtype=torch.float64))


def test_gradients_of_nan_are_no_zeros():
    """But where they do not depend on it: with linear weights the query's gradient knows keys and values alone."""
    query, key, value = (torch.randn(1, 1, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    expected = torch.autograd.grad(reference.mac_attention(query, key, value, activation="linear").sum(), query)[0]
    with torch.no_grad():
        query[:, :, 1] = float("nan")
    found = torch.autograd.grad(reference.mac_attention(query, key, value, activation="linear").sum(), query)[0]
    torch.testing.assert_close(found, expected)
    (found,) = torch.autograd.grad(reference.softmax_attention(query, key, value)[0].sum(), query)
    assert found[:, :, 1].isnan().all() and found[:, :, [0, 2, 3, 4]].isfinite().all()
