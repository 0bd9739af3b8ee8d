"""Soft windows, position biases and sparse patterns through the core, each against its paper's formula."""

import pytest
import torch
from torch import nn

import attnkern
from attnkern import priors

BATCH, HEADS, LENGTH, FEATURES = 2, 4, 65, 8


@pytest.fixture
def qkv(device):
    torch.manual_seed(0)
    shape = BATCH, HEADS, LENGTH, FEATURES
    return [torch.randn(shape, device=device, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def scores(query, key):
    return query @ key.mT / query.shape[-1] ** 0.5


def distance(len_q, len_k, device=None):
    """`i - j`, queries at the last keys."""
    return torch.arange(len_k - len_q, len_k, device=device)[:, None] - torch.arange(len_k, device=device)


def causal(score):
    return score.masked_fill(distance(*score.shape[-2:], score.device) < 0, float("-inf"))


def assert_agree(found, expected, *leaves, tolerance=1e-10):
    """Outputs and gradients."""
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found, expected, **close)
    for a, b in zip(
        *(torch.autograd.grad(output.sin().sum(), leaves, retain_graph=True) for output in (found, expected))
    ):
        torch.testing.assert_close(a, b, **close)


def parameter(*values, device):
    return torch.tensor(values, dtype=torch.float64, device=device, requires_grad=True)


def test_alibi(qkv, device):
    query, key, value = qkv
    slopes = torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256], dtype=torch.float64, device=device)[:, None, None]
    bias = -slopes * distance(LENGTH, LENGTH, device).abs()
    found = attnkern.global_attention(*qkv, priors.alibi(HEADS, LENGTH, LENGTH, device=device))
    assert_agree(found, (scores(query, key) + bias).softmax(-1) @ value, *qkv, tolerance=1e-6)

    row = priors.alibi(HEADS, 20, LENGTH, is_causal=True, device=device)
    assert row.shape == (1, HEADS, 1, LENGTH)  # no matrix
    last = query[:, :, -20:]
    expected = causal(scores(last, key) + bias[:, -20:]).softmax(-1) @ value
    found = attnkern.global_attention(last, key, value, row, is_causal=True, query_offset="end")
    assert_agree(found, expected, *qkv, tolerance=1e-6)


def test_alibi_slopes():
    eight = [2.0**-h for h in range(1, 9)]
    assert priors.alibi_slopes(8).tolist() == eight and priors.alibi_slopes(1).tolist() == [2.0**-8]
    assert priors.alibi_slopes(12).tolist() == eight + [2 ** -(h + 0.5) for h in range(4)]


def test_adaptive_span(qkv, device):
    query, key, value = qkv
    span = parameter(0.2, 2.3, 10.5, 90.0, device=device)
    ramp = ((6 + span[:, None, None] - distance(LENGTH, LENGTH, device).abs()) / 6).clamp(0, 1)
    weights = causal(scores(query, key)).exp() * ramp
    expected = weights / weights.sum(-1, keepdim=True) @ value
    mask = priors.adaptive_span(span, LENGTH, LENGTH, ramp=6)
    found = attnkern.local_attention(*qkv, mask, is_causal=True, window=(96, 0))
    assert_agree(found, expected, *qkv, span)

    narrow = mask[:, :2]  # the window may end where the ramp has ended
    found = attnkern.local_attention(*(t[:, :2] for t in qkv), narrow, is_causal=True, window=(9, 0))
    assert_agree(found, expected[:, :2], *qkv, span)


def test_gaussian_bias(qkv, device):
    query, key, value = qkv
    w, b = parameter(0.5, 0.1, 0.01, 1e-4, device=device), parameter(-1.0, -0.1, -2.0, 0.0, device=device)
    squares = distance(LENGTH, LENGTH, device).square()
    bias = -(w[:, None, None] * squares + b[:, None, None]).abs()
    expected = (scores(query, key) + bias).softmax(-1) @ value
    assert_agree(attnkern.global_attention(*qkv, priors.gaussian_bias(w, b, LENGTH, LENGTH)), expected, *qkv, w, b)

    expected = (scores(query, key) - w[:, None, None] * squares).softmax(-1) @ value  # without b: no matrix
    sigma = ((2 * w) ** -0.5)[None, :, None].expand(1, HEADS, LENGTH)
    found = attnkern.local_attention(*qkv, window=(-1, -1), sigma=sigma, renormalize=True)
    assert_agree(found, expected, *qkv, w)


def test_relative_bias(qkv, device):
    query, key, value = qkv
    table = torch.randn(HEADS, 11, dtype=torch.float64, device=device, requires_grad=True)
    last = query[:, :, -30:]
    bias = torch.stack(
        [table[:, min(max(j - i, -5), 5) + 5] for i in range(LENGTH - 30, LENGTH) for j in range(LENGTH)], 1
    )
    expected = (scores(last, key) + bias.view(HEADS, 30, LENGTH)).softmax(-1) @ value
    mask = priors.relative_bias(table, 30, LENGTH, query_offset=LENGTH - 30)
    assert_agree(attnkern.global_attention(last, key, value, mask), expected, *qkv, table)


def seen(rule):
    return torch.tensor([[j <= i and rule(i, j) for j in range(LENGTH)] for i in range(LENGTH)])


STRIDE, SUMMARY = 5, 2
PATTERNS = {
    "strided": (
        priors.strided_pattern(LENGTH, STRIDE),
        [seen(lambda i, j: j >= max(0, i - STRIDE)), seen(lambda i, j: (i - j) % STRIDE == 0)],
    ),
    "fixed": (
        priors.fixed_pattern(LENGTH, STRIDE, SUMMARY),
        [seen(lambda i, j: j // STRIDE == i // STRIDE), seen(lambda i, j: j % STRIDE >= STRIDE - SUMMARY)],
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_sparse_patterns(name, qkv, device):
    query, key, value = qkv
    pattern, expected = PATTERNS[name]
    assert torch.equal(pattern, torch.stack(expected))
    pattern = pattern.to(device)
    for mask in (pattern.any(0), pattern.repeat_interleave(HEADS // 2, 0)):
        right = scores(query, key).masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num() @ value
        assert_agree(attnkern.global_attention(*qkv, mask), right, *qkv)


def test_sparse_heads_without_a_matrix(qkv, device):
    strided, fixed = (PATTERNS[name][0].to(device) for name in PATTERNS)
    found = attnkern.local_attention(*qkv, window=(STRIDE, 0))
    assert_agree(found, attnkern.global_attention(*qkv, strided[0]), *qkv)

    folded = [t.unflatten(2, (-1, STRIDE)).transpose(2, 3).flatten(1, 2) for t in qkv]
    found = attnkern.global_attention(*folded, is_causal=True)
    found = found.unflatten(1, (HEADS, STRIDE)).transpose(2, 3).flatten(2, 3)
    assert_agree(found, attnkern.global_attention(*qkv, strided[1]), *qkv)

    blocks = [t.unflatten(2, (-1, STRIDE)).flatten(1, 2) for t in qkv]
    found = attnkern.global_attention(*blocks, is_causal=True).unflatten(1, (HEADS, -1)).flatten(2, 3)
    assert_agree(found, attnkern.global_attention(*qkv, fixed[0]), *qkv)


def test_transformer_xl(qkv, device):
    query, key, value = qkv
    segment, width = 24, 6
    draw = {"dtype": torch.float64, "device": device, "requires_grad": True}
    u, v, weight = (torch.randn(*shape, **draw) for shape in ((HEADS, FEATURES),) * 2 + ((HEADS, FEATURES, width),))
    last = query[:, :, -segment:]  # the keys before it are the memory

    far = distance(segment, LENGTH, device).double()[..., None] * 10_000.0 ** (
        -torch.arange(0, width, 2, device=device).double() / width
    )
    relative = torch.cat([far.sin(), far.cos()], -1)
    content = torch.einsum("bhie,bhje->bhij", last + u[:, None], key)
    position = torch.einsum("bhie,her,ijr->bhij", last + v[:, None], weight, relative)
    expected = causal((content + position) / FEATURES**0.5).softmax(-1) @ value
    features = priors.transformer_xl(last, key, u, v, weight)
    found = attnkern.global_attention(*features, value, is_causal=True, query_offset="end", scale=FEATURES**-0.5)
    assert_agree(found, expected, *qkv, u, v, weight)

    # relative indeed: the same segment behind a longer memory that it does not see
    longer = [nn.functional.pad(t, (0, 0, 1000, 0)) for t in (key, value)]
    query_xl, key_xl = priors.transformer_xl(last, longer[0], u, v, weight)
    hidden = torch.arange(LENGTH + 1000, device=device) >= 1000
    found = attnkern.global_attention(
        query_xl, key_xl, longer[1], hidden, is_causal=True, query_offset="end", scale=FEATURES**-0.5
    )
    assert_agree(found, expected, *qkv, u, v, weight, tolerance=1e-9)


Z, TABLE = torch.zeros(4), torch.zeros(4, 3, 5)
WRONG = [
    (lambda: priors.alibi(0, 4, 4), ValueError, "num_heads must be at least 1, got 0"),
    (lambda: priors.adaptive_span(Z, 4, 4, ramp=0), ValueError, "ramp must be positive and finite, got 0"),
    (lambda: priors.adaptive_span(8.0, 4, 4), TypeError, "span must be a floating-point Tensor, got 8.0"),
    (
        lambda: priors.gaussian_bias(Z, TABLE, 4, 4),
        ValueError,
        r"b must have shape \(heads,\) or \(\), got \(4, 3, 5\)",
    ),
    (lambda: priors.relative_bias(torch.zeros(4, 6), 4, 4), ValueError, r"table must .*2 R \+ 1\), got \(4, 6\)"),
    (lambda: priors.strided_pattern(9, 0), ValueError, "stride must be at least 1, got 0"),
    (lambda: priors.fixed_pattern(9, 3, 4), ValueError, "summary must be between 1 and stride 3, got 4"),
    (lambda: priors.transformer_xl(*[torch.zeros(1, 4, 2, 3)] * 2, Z, Z, TABLE), ValueError, "content_bias must"),
    (
        lambda: priors.transformer_xl(*[torch.zeros(1, 4, 2, 3)] * 2, *[torch.zeros(4, 3)] * 2, TABLE),
        ValueError,
        r"weight must have shape \(4, 3, an even number\), got \(4, 3, 5\)",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_bad_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
