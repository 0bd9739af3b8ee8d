"""Estimators of gradients through samples: unbiased, sparse where they promise it, and good enough to learn with."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import attnkern
from attnkern.backends import blocked
from attnkern.estimators import MovingAverageBaseline, leave_one_out, reinforce_loss, rloo_loss, soft_mixture
from attnkern.nn import Global, Hard, MultiheadAttention, hard_attentions

KEYS = 5
REWARD = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.1], dtype=torch.float64)


def row(batch=1, heads=1, **options):
    """One query for each of `batch` examples, all alike; the bias of its keys, whose gradient is that of the scores."""
    torch.manual_seed(0)
    bias = torch.randn(1, 1, 1, KEYS, dtype=torch.float64, requires_grad=True)
    tensors = [torch.randn(1, heads, length, 4, dtype=torch.float64) for length in (1, KEYS, KEYS)]
    query, key, value = (t.expand(batch, -1, -1, -1) for t in tensors)
    return attnkern.hard_attention(query, key, value, bias, **options), bias, tensors


def enumerated(heads=1):
    """The gradient of minus the expected reward to each key's score: `-p_j (R_j - mean R)`, summed over heads."""
    _, bias, (query, key, _) = row(heads=heads)
    p = (query @ key.mT / 2 + bias).softmax(-1)
    return -(p * (REWARD - (p * REWARD).sum(-1, keepdim=True))).sum(1).flatten().detach()


ESTIMATES = {
    "plain": lambda hard, reward: reinforce_loss(hard, reward),
    "baseline": lambda hard, reward: reinforce_loss(hard, reward, baseline=0.7),
    "leave-one-out": rloo_loss,
    "others as baseline": lambda hard, reward: reinforce_loss(hard, reward, leave_one_out(reward)),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_unbiased(name):
    """The mean of many estimates, against enumeration."""
    found = []
    for seed in range(30):
        hard, bias, _ = row(2000, num_samples=3, seed=seed)
        loss = ESTIMATES[name](hard, REWARD[hard.index])
        found.append(torch.autograd.grad(loss, bias)[0].flatten())
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert (error < 0.01).all()
    assert ((found.mean(0) - enumerated()).abs() < 4 * error).all()


def test_a_shared_reward_adds_up_the_rows_that_share_it():
    """Two heads draw; the reward is one for both, and its gradient that of the sum."""
    found = []
    for seed in range(30):
        hard, bias, _ = row(2000, heads=2, seed=seed)
        shared = REWARD[hard.index].sum(1, keepdim=True)
        found.append(torch.autograd.grad(reinforce_loss(hard, shared, shared.mean()), bias)[0].flatten())
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - enumerated(heads=2)).abs() < 4 * error).all()


def test_several_hard_layers():
    """The second layer asks what the first has found; all paths enumerated."""
    torch.manual_seed(1)
    query, key, value, key2 = (torch.randn(1, 1, n, 4, dtype=torch.float64) for n in (1, 3, 3, 3))
    bias, bias2 = (torch.randn(1, 1, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    reward = torch.randn(3, 3, dtype=torch.float64)
    first = (query @ key.mT / 2 + bias).softmax(-1).flatten()
    second = (value @ key2.mT / 2 + bias2).softmax(-1)[0, 0]
    exact = torch.autograd.grad(-(first[:, None] * second * reward).sum(), (bias, bias2))
    found = []
    for seed in range(30):
        batch = [t.expand(4000, -1, -1, -1) for t in (query, key, value, key2)]
        hards = [attnkern.hard_attention(*batch[:3], bias, seed=seed)]
        hards.append(attnkern.hard_attention(hards[0].output, batch[3], batch[3], bias2, seed=seed + 100))
        got = reward[hards[0].index, hards[1].index].view(4, -1, 1, 1)
        hards = [type(hard)(*(part.unflatten(0, (4, -1)) for part in hard)) for hard in hards]
        loss = sum(reinforce_loss(hard, got, leave_one_out(got)) for hard in hards)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, (bias, bias2))]))
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - torch.cat([g.flatten() for g in exact])).abs() < 4 * error).all()


def test_leave_one_out_is_sparse(monkeypatch):
    query, key, value = (torch.randn(2, 3, 6, 8, requires_grad=True) for _ in range(3))
    hard = attnkern.hard_attention(query, key, value, num_samples=4)
    reward = torch.randn(4, 2, 1, 6)
    loss = rloo_loss(hard, reward)
    assert torch.autograd.grad(loss, hard.lse, retain_graph=True, allow_unused=True) == (None,)
    (got,) = torch.autograd.grad(loss, hard.score, retain_graph=True)
    expected = -(reward - reward.mean(0)) / 3 / (2 * 6)  # the mean over 12 rewards of each draw
    torch.testing.assert_close(got, expected.expand_as(got))
    dense = torch.autograd.grad(reinforce_loss(hard, reward, leave_one_out(reward)), (query, key), retain_graph=True)
    monkeypatch.setattr(blocked, "backward", None)  # the dense half would fail
    torch.testing.assert_close(torch.autograd.grad(loss, (query, key)), dense)


def test_the_formula():
    hard, bias, _ = row(3, num_samples=2)
    reward = torch.randn(2, 3, 1, 1)
    loss = reinforce_loss(hard, reward, baseline=torch.tensor(0.5), entropy_weight=0.1)
    expected = -((reward - 0.5) * hard.log_prob).mean() - 0.1 * hard.entropy.mean()
    torch.testing.assert_close(loss, expected)
    reward.requires_grad_()
    assert torch.autograd.grad(rloo_loss(hard, reward), (bias, reward), allow_unused=True)[1] is None


def test_moving_average():
    baseline = MovingAverageBaseline(decay=0.8)
    assert baseline.update(torch.tensor([1.0, 3.0])) == 0.0
    torch.testing.assert_close(baseline.update(torch.tensor([0.0])), torch.tensor(0.4))
    torch.testing.assert_close(baseline.value, torch.tensor(0.32))
    hard, bias, _ = row(num_samples=2)
    reward = REWARD[hard.index]
    given = torch.autograd.grad(reinforce_loss(hard, reward, 0.32), bias, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(reinforce_loss(hard, reward, baseline), bias), given)
    torch.testing.assert_close(baseline.value, 0.8 * 0.32 + 0.2 * reward.mean(), check_dtype=False)


@pytest.mark.parametrize("draws", [None, 3])
def test_soft_mixture(draws):
    query, key, value = (torch.randn(50, 2, 6, 8, requires_grad=True) for _ in range(3))
    hard = attnkern.hard_attention(query, key, value, num_samples=draws)
    soft = attnkern.global_attention(query, key, value)
    mixed = soft_mixture(hard, soft)
    replaced = (mixed.index == -1).view(-1, 50, 12)
    assert (replaced == replaced[:1, :, :1]).all() and 10 < replaced[0, :, 0].sum() < 40
    coin = replaced[0, :, 0].view(50, 1, 1)
    torch.testing.assert_close(mixed.output, torch.where(coin[..., None], soft, hard.output))
    torch.testing.assert_close(mixed.log_prob, torch.where(coin, 0.0, hard.log_prob))
    assert soft_mixture(hard, soft, 0.0).index.equal(hard.index) and (soft_mixture(hard, soft, 1.0).index == -1).all()


class Model(nn.Module):
    def __init__(self, *kinds):
        super().__init__()
        self.layers = nn.ModuleList(MultiheadAttention(8, 2, batch_first=True, attention=kind) for kind in kinds)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x, x, x, need_weights=False)[0]
        return x.mean((1, 2))


def test_modules():
    model = Model(Hard(), Global(), Hard())
    with pytest.raises(ValueError, match="2 layers, 0 run"):
        hard_attentions(model)
    x = torch.randn(3, 5, 8)
    losses = model(x.repeat(4, 1, 1)).view(4, 3, 1, 1)
    hards = hard_attentions(model, copies=4)
    assert [hard.score.shape for hard in hards] == [(4, 3, 2, 5)] * 2
    assert hard_attentions(model)[0].score.shape == (12, 2, 5)
    loss = losses.mean() + sum(reinforce_loss(hard, -losses, leave_one_out(-losses)) for hard in hards)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with pytest.raises(ValueError, match="copies must divide"):
        hard_attentions(model, copies=5)
    with pytest.raises(ValueError, match="0 layers"):
        hard_attentions(Model(Global()))


def test_soft_mixture_of_a_module():
    soft, mixed = Model(Global()), Model(Hard(soft_mixture=1.0, num_samples=2))
    mixed.load_state_dict(soft.state_dict())
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(mixed(x), soft(x))
    assert (hard_attentions(mixed)[0].index == -1).all()
    mixed.eval()
    mixed(x)
    assert (hard_attentions(mixed)[0].index >= 0).all()
    windowed = Model(Hard(soft_mixture=1.0, window=1))
    local = Model(attnkern.nn.Local(1))
    local.load_state_dict(windowed.state_dict())
    torch.testing.assert_close(windowed(x), local(x))


def test_a_training_step_compiles():
    model, x = Model(Hard(soft_mixture=0.5), Hard()), torch.randn(3, 5, 8)

    def step(x):
        losses = model(x.repeat(4, 1, 1)).view(4, 3, 1, 1)
        hards = hard_attentions(model, copies=4)
        return losses.mean() + sum(reinforce_loss(hard, -losses, leave_one_out(-losses)) for hard in hards)

    torch.compile(step, fullgraph=True, backend="aot_eager")(x).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


HARD = row(3, num_samples=4)[0]
ONE = row(3)[0]
NAN = torch.full((4, 3, 1, 1), math.nan)
WRONG = [
    (lambda: reinforce_loss(HARD, NAN), ValueError, "reward must be finite, got 12 NaN of 12"),
    (lambda: rloo_loss(HARD, NAN), ValueError, "reward must be finite"),
    (lambda: reinforce_loss(HARD, torch.ones(4, 3, 1, 1), NAN), ValueError, "baseline must be finite"),
    (lambda: reinforce_loss(HARD, torch.ones(4, 3, 1, 1), math.nan), ValueError, "baseline must be a finite number"),
    (lambda: reinforce_loss(HARD, torch.ones(2, 1, 1)), ValueError, r"broadcast to \(4, 3, 1, 1\), got \(2, 1, 1\)"),
    (lambda: reinforce_loss(ONE, torch.ones(4, 3, 1, 1)), ValueError, r"broadcast to \(3, 1, 1\)"),
    (lambda: reinforce_loss(HARD, torch.ones(()), torch.ones(3, 1, 1)), ValueError, r"baseline must broadcast to \(\)"),
    (lambda: reinforce_loss(HARD, 1.0), TypeError, "reward must be a Tensor"),
    (lambda: reinforce_loss(HARD.output, torch.ones(())), TypeError, "hard must be a HardAttention"),
    (lambda: rloo_loss(ONE, torch.ones(3, 1, 1)), ValueError, "at least 2 draws"),
    (lambda: rloo_loss(row(3, num_samples=1)[0], torch.ones(1, 3, 1, 1)), ValueError, "at least 2 draws"),
    (lambda: rloo_loss(HARD, torch.ones(3, 1, 1)), ValueError, "one entry for each of 4 draws"),
    (lambda: leave_one_out(torch.ones(1, 3)), ValueError, "at least 2 draws"),
    (lambda: MovingAverageBaseline(decay=1.0), ValueError, "decay"),
    (lambda: soft_mixture(HARD, HARD.output), ValueError, "soft must be a Tensor of shape"),
    (lambda: soft_mixture(HARD, HARD.output[0], 1.5), ValueError, "probability must be a number in"),
    (lambda: Hard(soft_mixture=2), ValueError, "soft_mixture must be a number in"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_bad_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


EXAMPLE = Path(__file__).parents[1] / "examples" / "hard_recall.py"


@pytest.mark.parametrize(
    ("estimator", "steps"),
    [("straight-through", 200), ("leave-one-out, 4 copies", 200), ("one sample, moving average", 400)],
)
def test_recall_is_learned(estimator, steps):
    curve = runpy.run_path(str(EXAMPLE))["train"](estimator, steps)
    assert curve[-1][1] >= 0.99


def test_the_page_draws(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "recall.png"
    monkeypatch.setattr("sys.argv", ["hard_recall.py", "--steps", "5", "--out", str(picture)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "leave-one-out" in capsys.readouterr().out and picture.stat().st_size > 20_000
