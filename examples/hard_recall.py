"""Hard attention learns to recall: every gradient estimator on one task, their learning curves in one picture.

python examples/hard_recall.py [--steps 200] [--out hard_recall.png] [--seed 0]     (needs pip install '.[examples]')

A story is 8 pairs of a name and a number, the question one of the names. The model looks at a single pair, drawn from
its attention, so no gradient passes from the answer to where it looked: that is what the estimators are for.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnkern
from attnkern.estimators import MovingAverageBaseline, reinforce_loss, rloo_loss
from attnkern.nn import Global, Hard, hard_attentions
from attnkern.training import Script, new_figure, save_figure

PAIRS, NAMES, NUMBERS, WIDTH, BATCH, COPIES = 8, 20, 10, 32, 64, 4


class Recall(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.name, self.number = nn.Embedding(NAMES, WIDTH), nn.Embedding(NUMBERS, WIDTH)
        self.attention = attnkern.nn.MultiheadAttention(WIDTH, 1, batch_first=True, attention=attention)
        self.answer = nn.Linear(WIDTH, NUMBERS)

    def forward(self, names: Tensor, numbers: Tensor, question: Tensor) -> Tensor:
        """Names and numbers `(B, PAIRS)`, question `(B,)`: logits `(B, NUMBERS)`."""
        query = self.name(question)[:, None]
        found, _ = self.attention(query, self.name(names), self.number(numbers), need_weights=False)
        return self.answer(found[:, 0])


def stories(count: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Stories with their questions, and the answers."""
    names = torch.rand(count, NAMES).argsort(1)[:, :PAIRS]
    numbers = torch.randint(NUMBERS, (count, PAIRS))
    asked = torch.randint(PAIRS, (count, 1))
    return (names, numbers, names.gather(1, asked)[:, 0]), numbers.gather(1, asked)[:, 0]


class Direct:
    """No estimator: soft attention, or straight-through."""

    def loss(self, model, story, answer):
        return F.cross_entropy(model(*story), answer)


class OneSample:
    """REINFORCE with a moving average of the reward for a baseline."""

    def __init__(self):
        self.baseline = MovingAverageBaseline()

    def loss(self, model, story, answer):
        losses = F.cross_entropy(model(*story), answer, reduction="none").view(-1, 1, 1)
        expected = self.baseline.update(-losses)
        hards = hard_attentions(model)
        return losses.mean() + sum(reinforce_loss(hard, -losses, expected, entropy_weight=0.01) for hard in hards)


class LeaveOneOut:
    """Copies of each story, each the others' baseline."""

    def loss(self, model, story, answer):
        story, answer = [part.repeat(COPIES, *[1] * (part.dim() - 1)) for part in story], answer.repeat(COPIES)
        losses = F.cross_entropy(model(*story), answer, reduction="none").view(COPIES, -1, 1, 1)
        (hard,) = hard_attentions(model, copies=COPIES)
        return losses.mean() + rloo_loss(hard, -losses)


ESTIMATORS = {
    "soft attention": (Global(), Direct),
    "straight-through": (Hard(straight_through=True), Direct),
    "leave-one-out, 4 copies": (Hard(), LeaveOneOut),
    "one sample, moving average": (Hard(), OneSample),
    "one sample or expectation": (Hard(soft_mixture=0.5), OneSample),
}


def train(name: str, steps: int, seed: int = 0) -> list[tuple[int, float]]:
    """Steps and accuracies on new stories; in evaluation the model looks at its likeliest pair."""
    from rich.progress import track

    torch.manual_seed(seed)
    attention, estimator = ESTIMATORS[name]
    model, estimator = Recall(attention), estimator()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    curve = []
    for step in track(range(1, steps + 1), description=f"{name:<27}"):
        optimizer.zero_grad()
        estimator.loss(model, *stories(BATCH)).backward()
        optimizer.step()
        if step % max(1, steps // 40) == 0:
            curve.append((step, accuracy(model)))
    return curve


@torch.no_grad()
def accuracy(model: Recall) -> float:
    story, answer = stories(1000)
    model.eval()
    right = (model(*story).argmax(1) == answer).float().mean().item()
    model.train()
    return right


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    if (figure := new_figure(path, 8, 5)) is None:
        return
    panel = figure.subplots()
    for name, curve in curves.items():
        panel.plot(*zip(*curve), label=name)
    panel.set(xlabel="step", ylabel="answered right", ylim=(0, 1.02), title=f"Recall of one of {PAIRS} pairs")
    panel.legend()
    save_figure(figure, path)


def compare(options: argparse.Namespace) -> None:
    curves = {name: train(name, options.steps, options.seed) for name in ESTIMATORS}
    for name, curve in curves.items():
        print(f"{name:<27} {curve[-1][1]:6.1%} after {curve[-1][0]} steps")
    draw(curves, options.out)


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.number("--steps", 200, "of training, for each estimator")
    parser.picture("--out", "hard_recall.png")
    parser.seed()
    parser.run(compare)
