"""Empty sequences, rows with nothing to look at, infinite and huge scores: defined results, never NaN."""

import math

import pytest
import torch

import attnkern
from attnkern import AuxRequest
from tests.cases import CPU

BACKENDS = ["reference", "blocked", *CPU, "triton"]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def tensors(batch=1, heads=2, len_q=6, len_k=70, dim=16, device="cpu"):
    torch.manual_seed(0)
    shapes = ((batch, heads, len_q, dim), (batch, heads, len_k, dim), (batch, heads, len_k, dim))
    return [torch.randn(shape, device=device).requires_grad_() for shape in shapes]


def everything(query, key, value, mask=None, backend=None, **options):
    """All results of all three kinds, and the gradients of their finite parts."""
    output, aux = attnkern.global_attention(
        query, key, value, mask, return_aux=AuxRequest(lse=True, weights="heads"), backend=backend, **options
    )
    hard = attnkern.hard_attention(query, key, value, mask, seed=1, num_samples=3, backend=backend, **options)
    best = attnkern.hard_attention(query, key, value, mask, deterministic=True, backend=backend, **options)
    finite_lse = torch.where(hard.lse.isinf(), 0.0, hard.lse).sum() + torch.where(aux.lse.isinf(), 0.0, aux.lse).sum()
    loss = output.sum() + hard.output.sum() + hard.score.sum() + hard.log_prob.sum() + hard.entropy.sum() + finite_lse
    inputs = [t for t in (query, key, value, mask) if t is not None and t.requires_grad]
    gradients = torch.autograd.grad(loss + aux.weights.sum(), inputs)
    return output, aux, hard, best, gradients


def assert_no_nan(output, aux, hard, best, gradients):
    for tensor in (output, *aux, *hard, hard.log_prob, *best, *gradients):
        assert not tensor.isnan().any()


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
def test_empty_sequences(backend, lengths, device):
    results = everything(*tensors(len_q=lengths[0], len_k=lengths[1], device=device), backend=backend)
    assert_no_nan(*results)
    output, aux, hard, best, _ = results
    assert output.shape == (1, 2, lengths[0], 16) and (output == 0).all()
    assert (aux.lse == -math.inf).all() and (hard.index == -1).all() and (best.index == -1).all()


def test_empty_batch_and_heads(backend, device):
    assert everything(*tensors(batch=0, device=device), backend=backend)[0].shape == (0, 2, 6, 16)
    assert everything(*tensors(heads=0, device=device), backend=backend)[0].shape == (1, 0, 6, 16)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_rows_with_nothing_to_look_at(backend, kind, device):
    query, key, value = tensors(device=device)
    mask = torch.ones(1, 1, 6, 70, dtype=torch.bool, device=device)
    mask[:, :, 2] = False
    if kind == "float":
        mask = torch.zeros(mask.shape, device=device).masked_fill(~mask, -math.inf).requires_grad_()
    results = everything(query, key, value, mask, backend=backend)
    assert_no_nan(*results)
    output, aux, hard, best, gradients = results
    assert (output[:, :, 2] == 0).all() and (aux.lse[:, :, 2] == -math.inf).all() and (aux.weights[:, :, 2] == 0).all()
    assert (
        (hard.index[..., 2] == -1).all() and (hard.output[..., 2, :] == 0).all() and (hard.entropy[..., 2] == 0).all()
    )
    assert (best.index[..., 2] == -1).all() and (hard.log_prob[..., 2] == 0).all()
    assert (gradients[0][:, :, 2] == 0).all()
    assert (output[:, :, 3] != 0).any()


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_a_masked_key_may_hold_anything(backend, softcap, device):
    mask = torch.zeros(70, device=device)
    mask[3] = -math.inf
    results = []
    for hidden in (0.0, math.nan):
        inputs = query, key, value = tensors(device=device)
        with torch.no_grad():
            key[:, :, 3] = value[:, :, 3] = hidden
        output = attnkern.global_attention(*inputs, mask, softcap=softcap, backend=backend)
        hard = attnkern.hard_attention(*inputs, mask, softcap=softcap, seed=1, backend=backend)
        loss = output.sum() + hard.output.sum() + hard.log_prob.sum()
        results.append((output, hard.index, *torch.autograd.grad(loss, inputs)))
    for clean, poisoned in zip(*results):
        torch.testing.assert_close(clean, poisoned)


@pytest.mark.parametrize("anything", [math.nan, math.inf])
@pytest.mark.parametrize("prior", [{"is_causal": True}, {"window": (2, 2)}], ids=str)
def test_a_mask_may_hold_anything_out_of_sight(backend, prior, anything, device):
    inputs = tensors(len_q=20, len_k=20, device=device)
    distance = torch.arange(20, device=device) - torch.arange(20, device=device)[:, None]
    hidden = distance > 0 if "is_causal" in prior else distance.abs() > 2
    results = []
    for mask in (torch.randn(20, 20, generator=torch.Generator().manual_seed(0)).to(device),) * 2:
        mask = mask.masked_fill(hidden, anything) if results else mask
        output = attnkern.local_attention(*inputs, mask, backend=backend, **{"window": (-1, -1)} | prior)
        hard = attnkern.hard_attention(*inputs, mask, seed=1, backend=backend, **prior)
        mac = attnkern.mac_attention(*inputs, mask, activation="relu", backend=backend, **prior)
        loss = output.sin().sum() + hard.log_prob.sum() + mac.sin().sum()
        results.append((output, hard.index, hard.lse, mac, *torch.autograd.grad(loss, inputs)))
    for clean, spoilt in zip(*results):
        torch.testing.assert_close(clean, spoilt)


def test_positions_outside_the_keys(backend, device):
    query, key, value = tensors(device=device)
    for offset in (-1000, 1000):
        output, aux = attnkern.local_attention(
            query, key, value, window=(3, 3), query_offset=offset, return_aux=AuxRequest(lse=True), backend=backend
        )
        assert (output == 0).all() and (aux.lse == -math.inf).all()
        gradients = torch.autograd.grad(output.sum(), (query, key, value))
        assert all((g == 0).all() for g in gradients)


def test_infinite_scores_share_the_row(backend, device):
    query, key, value = tensors(device=device)
    mask = torch.zeros(1, 1, 6, 70, device=device)
    mask[..., [7, 69]] = math.inf
    results = everything(query, key, value, mask.requires_grad_(), backend=backend)
    assert_no_nan(*results)
    torch.testing.assert_close(results[0], value[:, :, [7, 69]].mean(2, keepdim=True).expand(1, 2, 6, 16))
    assert torch.isin(results[2].index, torch.tensor([7, 69], device=device)).all()


@pytest.mark.parametrize("prior", ["global", "window", "several tiles"])
@pytest.mark.parametrize("where", ["mask", "learned mask", "product"])
def test_an_infinite_score_is_a_constant(backend, where, prior, device):
    """As `reference.scores` says: the same results, weights and gradients on a CPU, whatever computes them."""
    if backend == "triton" and (where == "product" or prior == "several tiles"):
        pytest.skip("a tile without a mask takes an infinite score for a large one; tiles are slow in the interpreter")
    len_k = 1100 if prior == "several tiles" else 70
    inputs = query, key, value = tensors(len_k=len_k, device=device)
    mask = None
    with torch.no_grad():
        if where == "product":
            query[..., 0], key[..., 0], key[:, :, 7, 0], key[:, :, 30, 0] = 1e30, 0.0, 1e30, 1e30
        else:
            mask = torch.randn(1, 1, 6, len_k, device=device)
            mask[..., 7] = math.inf
            mask[..., 30] = math.inf
            mask[:, :, 0, 7], mask[:, :, 0, 9] = 0.0, math.inf
            mask[:, :, 1, 7] = 0.0
            mask.requires_grad_(where == "learned mask")
    window = (-1, 40) if prior == "window" else (-1, -1)
    leaves = [t for t in (*inputs, mask) if t is not None and t.requires_grad]
    found = []
    for name in ("reference", backend):
        aux = AuxRequest(lse=True, weights="heads")
        plain = attnkern.local_attention(query, key, value, mask, window=window, backend=name)
        output, aux = attnkern.local_attention(query, key, value, mask, window=window, return_aux=aux, backend=name)
        hard = attnkern.hard_attention(query, key, value, mask, window=window, seed=1, backend=name)
        lines = [plain, output, *aux, hard.output, hard.index, hard.score, hard.lse, hard.entropy]
        losses = (
            plain.square(),
            output.square() + aux.weights.square().sum(),
            hard.output + hard.entropy.unsqueeze(-1),
        )
        for loss in losses:
            lines += torch.autograd.grad(
                loss.sum() + hard.score.sin().sum(), leaves, retain_graph=True, allow_unused=True
            )
        found.append([torch.zeros(()) if line is None else line for line in lines])
    for expected, got in zip(*found):
        assert got.isfinite().all()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prior", ["global", "window"])
@pytest.mark.parametrize("place", ["query", "key", "value", "mask"])
def test_nan_is_not_lost(backend, place, prior, device):
    """What looks at NaN is NaN, not a number without meaning; what does not is as it was."""
    query, key, value = tensors(device=device)
    mask = torch.randn(1, 1, 6, 70, device=device)
    window = (3, 40) if prior == "window" else (-1, -1)
    clean = attnkern.local_attention(query, key, value, mask, window=window, backend=backend)
    with torch.no_grad():
        {"query": query[:, :, 2], "key": key[:, :, 4], "value": value[:, :, 4], "mask": mask[:, :, 2, 4]}[place][:] = (
            math.nan
        )
    aux = AuxRequest(lse=True)
    output, aux = attnkern.local_attention(query, key, value, mask, window=window, return_aux=aux, backend=backend)
    rows = [2] if place in ("query", "mask") else list(range(6))
    others = [row for row in range(6) if row not in rows]
    assert output[:, :, rows].isnan().all()
    assert place == "value" or aux.lse[:, :, rows].isnan().all()
    torch.testing.assert_close(output[:, :, others], clean[:, :, others])
    gradients = torch.autograd.grad(output.sum(), (query, key, value))
    assert any(gradient.isnan().any() for gradient in gradients)


@pytest.mark.parametrize("size", [1e4, 1e15, 1e19, 3e38])
def test_huge_scores(backend, size, device):
    query, key, value = tensors(device=device)
    with torch.no_grad():
        query.zero_()[..., 0] = size
        key.zero_()[..., 0] = torch.linspace(-1, 1, 70)
        key[..., 5, 0] = 2.0
        if size == 1e19:
            key *= 1e19  # the product itself overflows
    results = everything(query, key, value, backend=backend)
    for tensor in (results[0], *results[1], results[2].output, results[2].entropy):
        assert not tensor.isnan().any()
    torch.testing.assert_close(results[0][:, :, 0], value[:, :, 5] if size < 1e19 else results[0][:, :, 0])
    assert (results[3].index == (5 if size < 1e19 else results[3].index)).all()
    if size < 1e19:  # beyond, the gradients themselves overflow
        assert not any(g.isnan().any() for g in results[4])


def test_a_mask_of_the_lowest_finite_value_is_no_empty_row(backend, device):
    """What Hugging Face adds to padded rows: the row averages, as plain softmax does."""
    query, key, value = tensors(device=device)
    mask = torch.full((1, 1, 1, 70), torch.finfo(torch.float32).min, device=device)
    output = attnkern.global_attention(query, key, value, mask, backend=backend)
    torch.testing.assert_close(output, value.mean(2, keepdim=True).expand_as(output))


@pytest.mark.parametrize("dropout_p", [0.0, 1.0])
def test_dropout_at_its_ends(backend, dropout_p, device):
    query, key, value = tensors(device=device)
    output = attnkern.global_attention(query, key, value, dropout_p=dropout_p, backend=backend)
    expected = attnkern.global_attention(query, key, value, backend="reference") * (1 - dropout_p)
    torch.testing.assert_close(output, expected)
    assert not torch.autograd.grad(output.sum(), query)[0].isnan().any()


@pytest.mark.parametrize("window", [(0, 2**31 - 1), (2**31 - 1, 2**63 - 1), (2**62, 0)])
@pytest.mark.parametrize("offset", [0, 2**40, -(2**40)])
def test_windows_and_offsets_beyond_32_bits(backend, window, offset, device):
    query, key, value = tensors(device=device)
    small = (min(window[0], 1000), min(window[1], 1000))
    expected = attnkern.local_attention(
        query, key, value, window=small, query_offset=max(-500, min(offset, 500)), backend="reference"
    )
    for form in (offset, torch.tensor([offset], device=device)):
        got = attnkern.local_attention(query, key, value, window=window, query_offset=form, backend=backend)
        torch.testing.assert_close(got, expected)


def test_values_without_features(backend, device):
    query, key, _ = tensors(device=device)
    output, aux = attnkern.global_attention(query, key, key[..., :0], return_aux=AuxRequest(lse=True), backend=backend)
    assert output.shape == (1, 2, 6, 0) and aux.lse.isfinite().all()
    assert (attnkern.hard_attention(query, key, key[..., :0], seed=1, backend=backend).index >= 0).all()


def test_sampling_an_infinite_score(backend, device):
    query, key, value = tensors(device=device)
    mask = torch.zeros(1, 1, 6, 70, device=device)
    mask[..., [7, 69]] = math.inf
    hard = attnkern.hard_attention(query, key, value, mask, seed=1, backend=backend)
    assert hard.score.isfinite().all() and (hard.log_prob == 0).all()
    torch.testing.assert_close(hard.entropy, torch.full_like(hard.entropy, math.log(2)))
