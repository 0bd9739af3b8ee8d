"""A monotone alignment learned by global attention, local-m and local-p (Luong et al. 2015), and drawn.

python examples/monotone_alignment.py [--steps 200] [--seed 0] [--out picture.png]     (pip install '.[examples]')

Sentences of 28 random words are "translated" word by word, and the translation takes its time: it reads the sentence
slowly at first, then faster. Attention must find, for each word that it writes, the word to read. Global attention
looks everywhere, local-m in a window of 10 around its own position, local-p around a position that it predicts.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.nn import Global, Local, MultiheadAttention
from attnkern.training import Script, new_figure, save_figure

WORDS, LENGTH, WIDTH, HEADS, LAYERS, BATCH, WARM_UP = 32, 28, 64, 4, 2, 32, 50
ALIGNMENT = (torch.linspace(0, 1, LENGTH).pow(1.5) * (LENGTH - 1)).round().long()  # up to 4 words off the diagonal
KINDS = {"global": Global(), "local-m": Local(10), "local-p": Local(10, center="predicted")}


class Layer(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = MultiheadAttention(WIDTH, HEADS, batch_first=True, attention=attention)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, states: Tensor, source: Tensor) -> Tensor:
        states = states + self.attention(self.norms[0](states), source, source, need_weights=False)[0]
        return states + self.feed_forward(self.norms[1](states))


class Translator(nn.Module):
    """Writes all words at once, from nothing but their positions and the source."""

    def __init__(self, attention):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.source_places, self.target_places = (nn.Parameter(torch.randn(LENGTH, WIDTH)) for _ in range(2))
        self.layers = nn.ModuleList(Layer(attention) for _ in range(LAYERS))
        self.output = nn.Linear(WIDTH, WORDS)

    def forward(self, sentences: Tensor) -> Tensor:
        source = self.words(sentences) + self.source_places
        states = self.target_places.expand(len(sentences), -1, -1)
        for layer in self.layers:
            states = layer(states, source)
        return self.output(states)


def train(attention, steps: int, seed: int, advance=lambda: None) -> tuple[Translator, list[float]]:
    """The model, and the share of words that it got right at each step, on sentences that it had not seen."""
    torch.manual_seed(seed)
    model, dictionary = Translator(attention), torch.randperm(WORDS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / WARM_UP))
    accuracy = []
    for _ in range(steps):
        sentences = torch.randint(WORDS, (BATCH, LENGTH))
        target = dictionary[sentences[:, ALIGNMENT]]
        scores = model(sentences)
        optimizer.zero_grad()
        F.cross_entropy(scores.flatten(0, 1), target.flatten()).backward()
        optimizer.step()
        schedule.step()
        accuracy.append((scores.argmax(-1) == target).float().mean().item())
        advance()
    return model, accuracy


@torch.no_grad()
def look(model: Translator) -> tuple[Tensor, Tensor | None]:
    """For one sentence, all heads' weights `(heads, target, source)`, and predicted centres `(heads, target)`."""
    modules, calls = [layer.attention for layer in model.layers], []
    for module in modules:
        module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    model(torch.randint(WORDS, (1, LENGTH)))
    asked = list(zip(modules, calls))
    weights = torch.cat([module(*inputs, average_attn_weights=False)[1][0] for module, inputs in asked])
    if not hasattr(modules[0], "center"):
        return weights, None
    return weights, torch.cat([module.center(states, LENGTH)[0] for module, (states, *_) in asked])


def draw(models: dict[str, Translator], accuracy: dict[str, list[float]], path: Path) -> None:
    if (figure := new_figure(path, 15, 4)) is None:
        return
    *panels, curves = figure.subplots(1, len(models) + 1)
    for panel, (name, model) in zip(panels, models.items()):
        weights, centers = look(model)
        panel.imshow(weights.mean(0).numpy(), cmap="magma_r", origin="lower")
        panel.plot(ALIGNMENT.numpy(), range(LENGTH), "c.", markersize=3, label="the word to read")
        if centers is not None:
            reader = weights.amax(2).argmax(0, keepdim=True)  # of each word, the head that is the most certain
            panel.plot(centers.gather(0, reader)[0].numpy(), range(LENGTH), color="tab:green", label="predicted centre")
        panel.set(title=name, xlabel="word of the source", ylabel="word of the translation")
        panel.set(xlim=(-0.5, LENGTH - 0.5), ylim=(-0.5, LENGTH - 0.5))
        panel.legend(loc="upper left")
    for name, shares in accuracy.items():
        curves.plot(shares, label=name)
    curves.set(title="words that were right", xlabel="step", ylim=(0, 1.02))
    curves.legend()
    save_figure(figure, path)


def compare(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    models, accuracy = {}, {}
    with Progress() as progress:
        for name, kind in KINDS.items():
            task = progress.add_task(name, total=options.steps)
            models[name], accuracy[name] = train(kind, options.steps, options.seed, lambda t=task: progress.advance(t))
    for name, shares in accuracy.items():
        latest = shares[-20:]
        print(f"{name:<8} {sum(latest) / len(latest):7.2%} of words right in the last {len(latest)} steps")
    draw(models, accuracy, options.out)


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.number("--steps", 200, "of training, for each kind")
    parser.seed()
    parser.picture("--out", "monotone_alignment.png")
    parser.run(compare)
