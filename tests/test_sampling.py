"""Hard attention's draws: exact, the same everywhere for the same seed, and sparse where they can be."""

import pytest
import torch

import attnkern
from attnkern.backends import launching, tiles, tuning
from tests.cases import CPU

BACKENDS = ["reference", "blocked", *CPU, "triton"]


def tensors(batch=1, heads=2, len_q=40, len_k=200, dim=16, device="cpu"):
    generator = torch.Generator().manual_seed(4)
    shapes = ((batch, heads, len_q, dim), (batch, heads, len_k, dim), (batch, heads, len_k, dim))
    return [torch.randn(s, generator=generator).to(device).requires_grad_() for s in shapes]


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_chi_square(backend):
    """10^5 draws of one row against the exact probabilities, over three blocks of 64."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 150, 8)
    probabilities = (query @ key.mT / 8**0.5).softmax(-1).flatten().double()
    rows = query.expand(1, 1, 50_000, 8)
    index = attnkern.hard_attention(rows, key, key, num_samples=2, seed=17, backend=backend).index
    counts = torch.bincount(index.flatten(), minlength=150).double()
    expected = probabilities * 1e5
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 149 + 5 * (2 * 149) ** 0.5  # mean + 5 standard deviations, 149 degrees of freedom


def test_the_kernel_draws_what_the_reference_draws_often(device):
    """Triton's own chi-square would take the interpreter hours; equality of 10^4 draws says the same."""
    query, key, value = tensors(heads=1, len_q=1250, len_k=150, device=device)
    draws = [
        attnkern.hard_attention(query, key, value, num_samples=8, seed=5, backend=backend).index
        for backend in ("reference", "triton")
    ]
    assert torch.equal(*draws)


@pytest.mark.parametrize("window", [None, (70, 10)])
def test_same_seed_same_draws_for_every_backend_and_tile_size(device, monkeypatch, window):
    query, key, value = tensors(device=device)
    options = {"num_samples": 6, "seed": 123, "window": window, "query_offset": 90 if window else 0}
    draws = [attnkern.hard_attention(query, key, value, backend=b, **options).index for b in BACKENDS]
    monkeypatch.setattr(tiles, "ROWS", 16)
    monkeypatch.setattr(tiles, "KEYS", 64)
    monkeypatch.setattr(tuning, "INTERPRETER", tuning.Config(16, 64))
    draws += [attnkern.hard_attention(query, key, value, backend=b, **options).index for b in BACKENDS[1:]]
    assert all(torch.equal(draws[0], other) for other in draws[1:])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_same_seed_same_dropout_for_every_backend_and_tile_size(device, monkeypatch):
    query, key, value = tensors(device=device)
    options = {"dropout_p": 0.5, "seed": 7, "return_aux": attnkern.AuxRequest(weights="heads")}
    masks = [attnkern.global_attention(query, key, value, backend=b, **options)[1].weights > 0 for b in BACKENDS]
    monkeypatch.setattr(tiles, "ROWS", 16)
    monkeypatch.setattr(tiles, "KEYS", 48)
    monkeypatch.setattr(tuning, "INTERPRETER", tuning.Config(32, 16))
    masks += [attnkern.global_attention(query, key, value, backend=b, **options)[1].weights > 0 for b in BACKENDS[1:]]
    assert all(torch.equal(masks[0], other) for other in masks[1:])


def test_no_seed_follows_manual_seed():
    query, key, value = tensors()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(attnkern.hard_attention(query, key, value).index)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def products_of(function) -> set[str]:
    """Every operation that multiplies matrices while the function runs, inside our operations too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    names = {event.key for event in profile.key_averages()}
    return {name for name in names if any(part in name for part in ("mm", "matmul", "vecdot", "flash_attention"))}


@pytest.mark.parametrize("backend", ["blocked", "triton"])
def test_a_loss_of_scores_and_outputs_runs_no_dense_product_backward(backend, device, monkeypatch):
    query, key, value = tensors(device=device)
    launched = []
    if backend == "triton":
        original = launching.launch
        monkeypatch.setattr(launching, "launch", lambda k, *rest: (launched.append(k.__name__), original(k, *rest)))
    hard = attnkern.hard_attention(query, key, value, num_samples=4, seed=1, backend=backend)
    assert backend == "blocked" or launched == ["sample_forward"]
    launched.clear()
    sparse = hard.score.square().sum() + hard.output.square().sum()
    assert products_of(lambda: sparse.backward(retain_graph=True)) == set()
    assert launched == []
    dense = products_of(lambda: hard.log_prob.sum().backward())
    if backend == "blocked":
        assert any("bmm" in name for name in dense)  # the recorder does see them
    else:
        assert launched == ["backward_query", "backward_key_value"]


def test_deterministic_takes_the_first_of_the_highest(device):
    query = torch.ones(1, 1, 3, 16, device=device)
    key = torch.zeros(1, 1, 130, 16, device=device)
    key[..., [70, 128], :] = 1.0
    for backend in BACKENDS:
        hard = attnkern.hard_attention(query, key, key, deterministic=True, num_samples=2, backend=backend)
        assert hard.index.shape == (2, 1, 1, 3)
        assert (hard.index == 70).all()


def test_gradient_estimates_average_to_the_exact_gradient():
    """REINFORCE with rewards known per key: the mean over many draws against `p_j (R_j - mean R)`."""
    torch.manual_seed(0)
    scores = torch.randn(1, 1, 1, 90)
    rewards = torch.randn(90)
    bias = scores.expand(1, 1, 20_000, 90).clone().requires_grad_()
    zero = torch.zeros(1, 1, 20_000, 4)
    keys = torch.zeros(1, 1, 90, 4)
    hard = attnkern.hard_attention(zero, keys, keys, bias, num_samples=5, seed=3)
    (rewards[hard.index] * hard.log_prob).mean().backward()
    probabilities = scores.flatten().softmax(-1)
    exact = probabilities * (rewards - (probabilities * rewards).sum())
    assert (bias.grad.sum((0, 1, 2)) - exact).abs().max() < 0.01
