"""A reader fills the blank in a question about a story, with Attention-over-Attention or a plain mean.

python examples/cloze_reader.py [--steps 200] [--out cloze_reader.png] [--seed 0]   (needs pip install '.[examples]')

A story has 8 sentences, "mary took the apple .", the question is one of them without its last word: only the name and
the verb together tell which, for each stands in several sentences. Both readers find the answer; Attention-over-
Attention (Cui et al. 2017) is surer, because it weighs the question's words instead of averaging them.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from attnkern.nn import AoAReader
from attnkern.training import Script, new_figure, save_figure

SENTENCES, BATCH = 8, 64
NAMES = ["mary", "john", "sandra", "daniel", "anna", "peter"]
VERBS = ["took", "dropped", "saw", "bought", "sold", "found"]
THINGS = ["apple", "ball", "book", "cup", "drum", "egg", "flute", "hat", "key", "lamp", "milk", "nut", "ring", "tent"]
WORDS = ["<padding>", *NAMES, *VERBS, *THINGS, "the", ".", "<blank>"]
ID = {word: number for number, word in enumerate(WORDS)}


class MeanReader(AoAReader):
    """Every word of the question counts alike: the ablation that Cui et al. compare with."""

    def attend(self, document: Tensor, question: Tensor) -> Tensor:
        document, question = self._read(document, self.document_gru), self._read(question, self.question_gru)
        return (document @ question.mT).softmax(1).mean(2)


READERS = {"attention over attention": AoAReader, "mean over the question": MeanReader}


def stories(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Word ids of stories `(count, 40)`, questions `(count, 5)` and answers `(count,)`."""
    pair = torch.rand(count, len(NAMES) * len(VERBS)).argsort(1)[:, :SENTENCES]  # no name does the same twice
    thing = torch.rand(count, len(THINGS)).argsort(1)[:, :SENTENCES] + ID[THINGS[0]]
    name, verb = pair // len(VERBS) + ID[NAMES[0]], pair % len(VERBS) + ID[VERBS[0]]
    the, stop = (torch.full_like(pair, ID[word]) for word in ("the", "."))
    sentences = torch.stack([name, verb, the, thing, stop], 2)
    asked = torch.arange(count), torch.randint(SENTENCES, (count,))
    question = sentences[asked].clone()
    question[:, 3] = ID["<blank>"]
    return sentences.flatten(1), question, thing[asked]


def loss_of(reader: AoAReader, document: Tensor, question: Tensor, answer: Tensor) -> Tensor:
    return -reader(document, question).gather(1, answer[:, None]).log().mean()


def train(name: str, steps: int, seed: int = 0) -> tuple[AoAReader, list[float]]:
    """A reader and its loss at every step."""
    from rich.progress import track

    torch.manual_seed(seed)
    reader = READERS[name](len(WORDS), embed_dim=48, hidden=48)
    optimizer = torch.optim.Adam(reader.parameters(), lr=5e-3)
    losses = []
    for _ in track(range(steps), description=f"{name:<25}"):
        optimizer.zero_grad()
        loss = loss_of(reader, *stories(BATCH))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    return reader, losses


@torch.no_grad()
def test(reader: AoAReader) -> tuple[float, float]:
    """Loss, and share of answers that are right, on new stories."""
    document, question, answer = stories(1000)
    right = reader(document, question).argmax(1) == answer
    return loss_of(reader, document, question, answer).item(), right.float().mean().item()


@torch.no_grad()
def draw(readers: dict[str, AoAReader], losses: dict[str, list[float]], path: Path) -> None:
    """The losses, and where each reader looks in one story."""
    if (figure := new_figure(path, 11, 5.5)) is None:
        return
    curves, *looks = figure.subplot_mosaic([["curves", *readers]], width_ratios=[2, 1, 1]).values()
    for name, curve in losses.items():
        curves.semilogy(curve, label=name)
    curves.set(xlabel="step", ylabel="loss")
    curves.legend()
    document, question, answer = stories(1)
    for panel, (name, reader) in zip(looks, readers.items()):
        attention = reader.attend(document, question).view(SENTENCES, -1)
        panel.imshow(attention.numpy(), cmap="Reds", vmin=0, vmax=2, aspect="auto")
        for place, word in enumerate(document[0]):
            panel.text(place % 5, place // 5, WORDS[word], ha="center", va="center", fontsize=8)
        asked = " ".join(WORDS[word] for word in question[0])
        panel.set(title=f"{name}\n{asked}", xticks=[], yticks=[])
        panel.title.set_fontsize(9)
    save_figure(figure, path)


def compare(options: argparse.Namespace) -> None:
    readers, losses = {}, {}
    for name in READERS:
        readers[name], losses[name] = train(name, options.steps, options.seed)
        loss, right = test(readers[name])
        print(f"{name:<25} loss {loss:.3f}, {right:.1%} of answers right")
    draw(readers, losses, options.out)


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.number("--steps", 200, "of training, for each reader")
    parser.picture("--out", "cloze_reader.png")
    parser.seed()
    parser.run(compare)
