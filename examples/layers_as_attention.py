"""Convolution, linear layer, feed-forward network and recurrences, each run through the attention core.

python examples/layers_as_attention.py [picture.png]        (needs matplotlib: pip install '.[examples]')

Attention is `output_i = sum_j w_ij * value_j`. So are these layers, with weights of their own. The page prints how far
each is from the original in float32, and draws the weights: a row for each query, a column for each key.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnkern
from attnkern.layers import linear_attention, linear_recurrence
from attnkern.training import Script, new_figure, save_figure

LENGTH, FEATURES, HIDDEN = 48, 16, 64


def recurrence_step_by_step(decay: Tensor, input: Tensor) -> Tensor:
    state, states = torch.zeros_like(input[:, 0]), []
    for step in range(input.shape[1]):
        state = decay[:, step] * state + input[:, step]
        states.append(state)
    return torch.stack(states, 1)


def linear_attention_step_by_step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A recurrent network whose state is a matrix: Katharopoulos et al. 2020."""
    query, key = F.elu(query) + 1, F.elu(key) + 1
    memory, total, outputs = 0, 0, []
    for q, k, v in zip(query.unbind(2), key.unbind(2), value.unbind(2)):
        memory, total = memory + k[..., None] * v[..., None, :], total + k
        outputs.append((q[..., None] * memory).sum(-2) / (q * total).sum(-1, keepdim=True))
    return torch.stack(outputs, 2)


def differences(ours, theirs, inputs: list[Tensor]) -> tuple[float, float]:
    """The largest difference of the outputs; and of the gradients, each relative to its own norm."""
    found = []
    for function in (ours, theirs):
        output = function(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        wanted = [*inputs, *(theirs.parameters() if isinstance(theirs, nn.Module) else ())]
        found.append((output, torch.autograd.grad(output.square().sum(), wanted)))
    (our_output, our_gradients), (their_output, their_gradients) = found
    relative = [(a - b).norm() / b.norm() for a, b in zip(our_gradients, their_gradients)]
    return (our_output - their_output).abs().max().item(), max(relative).item()


def compare() -> None:
    layers = {
        "convolution": (nn.Conv1d(FEATURES, HIDDEN, 5, padding=2), (1, FEATURES, LENGTH)),
        "  stride 2, dilation 3": (nn.Conv1d(FEATURES, HIDDEN, 3, stride=2, dilation=3), (1, FEATURES, LENGTH)),
        "  depthwise": (nn.Conv1d(FEATURES, FEATURES, 5, padding=2, groups=FEATURES), (1, FEATURES, LENGTH)),
        "linear layer": (nn.Linear(FEATURES, HIDDEN), (LENGTH, FEATURES)),
        "feed-forward network": (feed_forward(), (LENGTH, FEATURES)),
        "Elman network (tanh)": (nn.RNN(FEATURES, HIDDEN), (LENGTH, 1, FEATURES)),
    }
    rows = {
        name: (attnkern.as_attention(layer), layer, [torch.randn(shape)]) for name, (layer, shape) in layers.items()
    }
    decay = torch.rand(1, LENGTH, FEATURES) * 0.5 + 0.5
    rows["linear recurrence"] = linear_recurrence, recurrence_step_by_step, [decay, torch.randn(decay.shape)]
    heads = [torch.randn(1, 2, LENGTH, FEATURES) for _ in range(3)]
    rows["linear attention (RNN)"] = linear_attention, linear_attention_step_by_step, heads

    print(f"{'differs from the original, in float32, by':<40} {'output':>9} {'gradients':>10}")
    for name, (ours, theirs, inputs) in rows.items():
        output, gradient = differences(ours, theirs, [t.requires_grad_() for t in inputs])
        print(f"{name:<40} {output:9.1e} {gradient:10.1e}")


def feed_forward() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES))


def weights(query: Tensor, key: Tensor, mask: Tensor | None = None, **options) -> Tensor:
    """The core's weights `(queries, keys)`: its output when the values are unit vectors."""
    units = torch.eye(len(key))
    return attnkern.mac_attention(query[None, None], key[None, None], units[None, None], mask, **options)[0, 0]


def patterns() -> dict[str, Tensor]:
    """Each layer's weights, for one random input."""
    input, one = torch.randn(LENGTH, FEATURES), torch.ones(LENGTH, 1)
    first = feed_forward()[0]
    heads = [weights(one, one, window=(0, 0), query_offset=h - 2, scale=1.0) * (h + 1) for h in range(5)]
    level = torch.log(torch.rand(LENGTH, 1) * 0.5 + 0.5).cumsum(0)
    features = torch.cat([level, one], 1), torch.cat([one, -level], 1)
    phi = [F.elu(torch.randn(LENGTH, FEATURES)) + 1 for _ in range(2)]
    shared = weights(*phi, activation="linear", is_causal=True)
    states = nn.RNN(FEATURES, HIDDEN)(input)[0]
    return {
        "convolution of 5: a head for each tap": sum(heads),
        "linear layer: the input itself": weights(input, torch.eye(FEATURES), activation="linear", scale=1.0),
        "feed-forward: relu, hidden units are keys": weights(
            input, first.weight, first.bias, activation="relu", scale=1.0
        ),
        "Elman network: tanh, one row at a time": states,
        "linear recurrence: exp of a falling level": weights(*features, activation="exp", scale=1.0, is_causal=True),
        "linear attention: rows over their largest": shared / shared.amax(1, keepdim=True),
    }


def draw(path: Path) -> None:
    if (figure := new_figure(path, 12, 7.5)) is None:
        return
    for panel, (title, weight) in zip(figure.subplots(2, 3).flat, patterns().items()):
        weight = weight.detach()
        signed = bool((weight < 0).any())
        limit = weight.abs().max().item()
        colours = {"cmap": "RdBu" if signed else "magma_r", "vmin": -limit if signed else 0, "vmax": limit}
        panel.imshow(weight.numpy(), aspect="auto", interpolation="nearest", **colours)
        panel.set(title=title, xlabel="key", ylabel="query")
    save_figure(figure, path)


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.picture("picture", "layers_as_attention.png", nargs="?")
    torch.manual_seed(0)
    parser.run(lambda options: (compare(), draw(options.picture)))
