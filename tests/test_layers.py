"""Torch's layers through the attention core: every row of the table equals the original, forward and gradient."""

import copy
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import attnkern
from attnkern.layers import linear_attention, linear_recurrence

CONVOLUTIONS = [
    {"kernel_size": 5},
    {"kernel_size": 3, "stride": 2, "padding": 4, "dilation": 3},
    {"kernel_size": 4, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "stride": 5, "groups": 4},
    {"kernel_size": 2, "stride": 3, "padding": 1, "padding_mode": "replicate"},
    {"kernel_size": 7, "padding": 3, "padding_mode": "circular"},
    {"kernel_size": 4, "padding": "same", "padding_mode": "reflect", "bias": False},
    {"kernel_size": 1, "padding": 40, "stride": 50},  # a phase beyond the input, and outputs that see nothing of it
]
ROWS = {
    **{f"conv {options}": (2.4e-7, lambda o=options: nn.Conv1d(8, 12, **o), (2, 8, 45)) for options in CONVOLUTIONS},
    "depthwise conv": (2.4e-7, lambda: nn.Conv1d(8, 8, 5, padding=2, groups=8), (2, 8, 111)),
    "conv without a batch": (2.4e-7, lambda: nn.Conv1d(8, 12, 3), (8, 63)),
    "linear": (2.4e-7, lambda: nn.Linear(64, 96), (3, 65, 64)),
    "wide linear": (2.4e-7, lambda: nn.Linear(600, 5, bias=False), (7, 600)),
    "feed-forward": (1e-6, lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)), (2, 65, 64)),
    "feed-forward without bias": (
        1e-6,
        lambda: nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(inplace=True), nn.Linear(9, 1, bias=False)),
        (6,),
    ),
    "rnn": (4e-7, lambda: nn.RNN(8, 16), (30, 3, 8)),
    "relu rnn": (4e-7, lambda: nn.RNN(8, 16, nonlinearity="relu", bias=False, batch_first=True), (3, 20, 8)),
    "deep rnn": (4e-7, lambda: nn.RNN(8, 16, num_layers=2, bidirectional=True, batch_first=True), (3, 20, 8)),
    "rnn without a batch": (4e-7, lambda: nn.RNN(8, 16, bidirectional=True), (20, 8)),
}


def assert_agree(function, original, inputs, tolerance):
    """Outputs and every gradient against the original in float64: relative to the largest entry, the error is at most
    `tolerance`, twice that for gradients (sums of a hundred terms), or twice the original's own where that is more."""

    def results(function, inputs, convert=lambda t: t):
        function = copy.deepcopy(function) if function is original else function
        function = convert(function) if isinstance(function, nn.Module) else function
        inputs = tuple(convert(t.detach()).requires_grad_() for t in inputs)
        output = function(*inputs)
        outputs = output if isinstance(output, tuple) else (output,)
        torch.manual_seed(1)
        loss = sum((o * torch.randn(o.shape, dtype=torch.float64).to(o)).sum() for o in outputs)
        parameters = tuple(function.parameters()) if isinstance(function, nn.Module) else ()
        return [(1, t) for t in outputs] + [(2, t) for t in torch.autograd.grad(loss, (*inputs, *parameters))]

    compared = results(function, inputs), results(original, inputs, lambda t: t.cpu()), results(original, inputs, wide)
    for number, ((factor, got), (_, own), (_, right)) in enumerate(zip(*compared)):
        assert got.shape == right.shape
        size = max(1.0, right.abs().max().item())
        error, own_error = ((t.cpu() - right).abs().max().item() / size for t in (got, own))
        assert error <= max(factor * tolerance, 2 * own_error), f"result {number} errs by {error:.2g}"


def wide(tensor):
    return tensor.cpu().double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("row", ROWS)
def test_layers(row, dtype, device):
    torch.manual_seed(0)
    tolerance, make, shape = ROWS[row]
    layer = make().to(device, dtype)
    inputs = (torch.randn(shape, device=device, dtype=dtype),)
    if row == "deep rnn":
        inputs += (torch.randn(4, 3, 16, device=device, dtype=dtype),)
    twin = attnkern.as_attention(layer)
    assert isinstance(twin, type(layer)) and all(a is b for a, b in zip(layer.parameters(), twin.parameters()))
    assert_agree(twin, layer, inputs, tolerance if dtype == torch.float32 else 1e-14)


def recurrent(decay, input):
    """One step after the other."""
    state, states = 0, []
    for step in range(input.shape[1]):
        state = decay[:, step] * state + input[:, step]
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize(("length", "width"), [(1, 1), (64, 1), (65, 8), (300, 1), (4200, 1)])
def test_linear_recurrence(length, width, device):
    torch.manual_seed(0)
    decay = torch.sigmoid(torch.randn(2, length, width) + 2).to(device)
    input = torch.randn(2, length, 8, device=device)
    assert_agree(linear_recurrence, recurrent, (decay, input), 1.4e-6)


def test_decays_of_any_size(device):
    """Resets, decays near 1 after them, and growth."""
    torch.manual_seed(0)
    decay = torch.rand(2, 200, 3, device=device) ** 9 + 1e-30
    decay[:, 100:150] = 1.01
    decay.requires_grad_()
    input = torch.randn(2, 200, 3, device=device, requires_grad=True)
    output = linear_recurrence(decay, input)
    torch.testing.assert_close(output, recurrent(decay.double(), input.double()).float(), rtol=2e-6, atol=2e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(output.sum(), (decay, input)))
    half = linear_recurrence(decay.bfloat16(), input.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("is_causal", [True, False])
def test_linear_attention(is_causal, device):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 70, 16, device=device) for _ in range(3)]

    def original(query, key, value):
        query, key = (torch.nn.functional.elu(t) + 1 for t in (query, key))
        memory, total, outputs = 0, 0, []
        for step in range(70):
            memory = memory + key[:, :, step, :, None] * value[:, :, step, None]
            total = total + key[:, :, step]
            outputs.append((memory, total))
        if not is_causal:
            outputs = [outputs[-1]] * 70
        return torch.stack(
            [(q[..., None] * m).sum(-2) / (q * t).sum(-1, keepdim=True) for q, (m, t) in zip(query.unbind(2), outputs)],
            2,
        )

    assert_agree(lambda *t: linear_attention(*t, is_causal=is_causal), original, inputs, 3.6e-7)


def test_the_work_is_linear_in_the_length():
    convolution = attnkern.as_attention(nn.Conv1d(4, 4, 3, padding=1))
    for function in (convolution, lambda x: linear_recurrence(torch.full_like(x.mT, 0.9), x.mT)):
        flops = []
        for length in (2**12, 2**13):
            with FlopCounterMode(display=False) as counter:
                function(torch.randn(1, 4, length))
            flops.append(counter.get_total_flops())
        assert 1.9 < flops[1] / flops[0] < 2.1


def test_layers_compile():
    layers = nn.Conv1d(4, 6, 3, stride=2), nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    twins = [attnkern.as_attention(layer) for layer in layers]
    decay, input = torch.rand(1, 70, 1) + 0.1, torch.randn(1, 70, 4)

    def step(input):
        return twins[1](twins[0](linear_recurrence(decay, input).mT).mT)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), step(input))


def test_the_page_prints_and_draws(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "layers.png"
    monkeypatch.setattr(sys, "argv", ["layers_as_attention.py", str(picture)])
    page = Path(__file__).parents[1] / "examples" / "layers_as_attention.py"
    runpy.run_path(str(page), run_name="__main__")
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert len(rows) == 8 and all(float(number) < 5e-6 for row in rows for number in row.split()[-2:])
    assert picture.stat().st_size > 20_000 and str(picture) in last


class Quiet(nn.Linear):
    """A subclass may compute anything."""


WRONG = [
    (lambda: attnkern.as_attention(nn.Conv2d(1, 1, 1)), TypeError, r"nn.Conv1d, nn.Linear, nn.RNN .* got Conv2d"),
    (lambda: attnkern.as_attention(Quiet(1, 1)), TypeError, "got Quiet"),
    (lambda: attnkern.as_attention(nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))), TypeError, "Tanh"),
    (lambda: attnkern.as_attention(torch.relu), TypeError, "got builtin"),
    (lambda: attnkern.as_attention(nn.Conv1d(4, 2, 3))(torch.zeros(1, 3, 9)), ValueError, r"\(\[N,\] 4, L\), got"),
    (lambda: attnkern.as_attention(nn.Conv1d(4, 2, 3))(torch.zeros(1, 4, 2)), ValueError, "as long as the kernel"),
    (lambda: attnkern.as_attention(nn.Linear(4, 2))(torch.zeros(3)), ValueError, r"shape \(\*, 4\), got \(3,\)"),
    (lambda: attnkern.as_attention(nn.RNN(4, 2))(pack_sequence([torch.zeros(3, 4)])), TypeError, "PackedSequence"),
    (lambda: attnkern.as_attention(nn.RNN(4, 2))(torch.zeros(3, 1, 5)), ValueError, "4 features"),
    (lambda: attnkern.as_attention(nn.RNN(4, 2))(torch.zeros(3, 1, 4), torch.zeros(1, 2, 2)), ValueError, "hx must"),
    (lambda: linear_recurrence(torch.ones(1, 3, 2), torch.ones(1, 3, 4)), ValueError, "decay must have the shape"),
    (lambda: linear_recurrence(torch.zeros(1, 3, 1), torch.ones(1, 3, 4)), ValueError, "decay must be positive"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_bad_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
