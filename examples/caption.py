"""Pictures are put into words, by soft and by hard attention, and the words show where they looked (Xu et al. 2015).

python examples/caption.py [--steps 800] [--runs caption_runs] [--out caption.png]     (pip install '.[examples]')

A picture holds 1 to 3 coloured shapes in 9 fields; its caption names them in reading order, "red cross blue disc".
A small convolutional network describes 36 places, and Luong's decoder with input feeding, which stands in
for Xu's, looks at all of them for each word (soft) or at one, drawn from its attention (hard). No gradient passes
through a draw: REINFORCE with a moving average of the reward, a bonus for entropy, and for half of the captions the
expectation instead. Soft attention should look everywhere once: the doubly stochastic term. Tests take the likeliest.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.estimators import MovingAverageBaseline, reinforce_loss
from attnkern.nn import Global, Hard, LuongDecoder, hard_attentions
from attnkern.training import Run, Script, Settings, adamw, descend, new_figure, save_figure

FIELDS, SIZE, PLACES, HIDDEN, BATCH = 3, 24, 6, 64, 64  # fields, pixels and places, all along a side
COLOURS = {"red": (1, 0.1, 0.1), "green": (0.1, 0.8, 0.1), "blue": (0.2, 0.3, 1), "yellow": (1, 0.9, 0)}
SHAPES = ["square", "disc", "cross", "frame"]
WORDS = ["<end>", *COLOURS, *SHAPES]
MOST, LONGEST = 3, 2 * 3 + 1  # shapes, and words with the end
KINDS = {"soft": Global(), "hard": Hard(soft_mixture=0.5)}
DOUBLY_STOCHASTIC, ENTROPY = 0.1, 0.01  # weights of the terms


def stamps() -> Tensor:
    """Every shape on 6 by 6 pixels: `(shapes, 6, 6)`."""
    y, x = (torch.arange(6) - 2.5).abs().unsqueeze(0), (torch.arange(6) - 2.5).abs().unsqueeze(1)
    full = torch.ones(6, 6)
    return torch.stack([full, (x**2 + y**2 < 8) * full, (torch.minimum(x, y) < 1) * full, (x.maximum(y) > 2) * full])


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Pictures `(count, 3, 24, 24)`, and their captions `(count, LONGEST)`, filled up with the end."""
    number = torch.randint(1, MOST + 1, (count, 1))
    taken = torch.rand(count, FIELDS**2).argsort(1).argsort(1) < number
    colour, shape = (torch.randint(len(kind), (count, FIELDS**2)) for kind in (COLOURS, SHAPES))
    paint = torch.tensor(list(COLOURS.values()))[colour]  # (count, fields, 3)
    field = stamps()[shape][:, :, None] * paint[..., None, None] * taken[:, :, None, None, None]
    field = F.pad(field, (1, 1, 1, 1)).unflatten(1, (FIELDS, FIELDS))
    picture = field.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, SIZE, SIZE)
    picture = picture + 0.1 * torch.randn(count, 3, SIZE, SIZE)

    order = (~taken).int().argsort(dim=1, stable=True)[:, :MOST]  # of the taken fields, as they are read
    words = torch.stack([colour + 1, shape + 1 + len(COLOURS)], 2)
    words = words.gather(1, order[..., None].expand(-1, -1, 2)) * (torch.arange(MOST) < number)[..., None]
    return picture, F.pad(words.flatten(1), (0, 1))


class Captioner(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, HIDDEN, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.place = nn.Parameter(0.1 * torch.randn(PLACES**2, HIDDEN))
        self.begin = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.decoder = LuongDecoder(len(WORDS), HIDDEN, score="general", attention=attention)

    def state(self, picture: Tensor):
        """What is seen at each place is the memory; its mean begins the decoder."""
        memory = self.see(picture).flatten(2).mT + self.place
        cells = self.begin(memory.mean(1)).tanh().unflatten(1, (1, 2, HIDDEN))
        return self.decoder.begin(memory, cells)

    def forward(self, picture: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each word `(B, LONGEST)`, and where each looked `(B, LONGEST, places)`."""
        logits, _, looked = self.decoder(F.pad(caption, (1, -1)), self.state(picture), need_weights=True)
        return F.cross_entropy(logits.mT, caption, reduction="none"), looked

    @torch.no_grad()
    def describe(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest words `(B, LONGEST)`, and where each looked."""
        state, word = self.state(picture), torch.zeros(len(picture), 1, dtype=torch.int64)
        words, looks = [], []
        for _ in range(LONGEST):
            logits, state, looked = self.decoder(word, state, need_weights=True)
            word = logits.argmax(-1)
            words.append(word)
            looks.append(looked)
        return torch.cat(words, 1), torch.cat(looks, 1)


def loss_of(model: Captioner, losses: Tensor, looked: Tensor, baseline: MovingAverageBaseline) -> Tensor:
    """Of the words, and of where they looked."""
    if not isinstance(model.decoder.attention, Hard):
        return losses.mean() + DOUBLY_STOCHASTIC * (1 - looked.sum(1)).square().mean()
    (hard,) = hard_attentions(model)  # every word's reward is its own: the whole caption's, Xu's, has more variance
    return losses.mean() + reinforce_loss(hard, -losses[:, None], baseline, ENTROPY)


def train(name: str, steps: int, folder: Path, seed: int = 0) -> Captioner:
    Settings(folder / name, seed=seed).keep()
    torch.manual_seed(seed)
    model, baseline = Captioner(KINDS[name]), MovingAverageBaseline()
    optimizer, schedule = adamw(model, 5e-3, steps, warm_up=steps // 5)
    run = Run(folder / name, steps=steps, model=model, optimizer=optimizer, schedule=schedule, baseline=baseline)
    for _ in run:
        losses, looked = model(*pictures(BATCH))
        descend(loss_of(model, losses, looked, baseline), model, optimizer, schedule, clip=5.0)
        run.log(loss=losses.mean().item())
    return model.eval()


def accuracy(model: Captioner) -> float:
    """Share of captions that are right to the last word, on new pictures."""
    picture, caption = pictures(1000)
    return (model.describe(picture)[0] == caption).all(1).float().mean().item()


def draw(models: dict[str, Captioner], path: Path) -> None:
    """Two pictures, what each model says of them, and where it looked for each word."""
    picture, _ = pictures(2)
    if (figure := new_figure(path, 1.5 * (LONGEST + 1), 3.4 * len(models))) is None:
        return
    rows = figure.subplots(2 * len(models), LONGEST + 1, subplot_kw={"xticks": [], "yticks": []})
    for row, (name, number) in zip(rows, ((name, number) for name in models for number in range(2))):
        image = picture[number].permute(1, 2, 0).clamp(0, 1)
        row[0].imshow(image)
        row[0].set_ylabel(name)
        words, looks = (part[0] for part in models[name].describe(picture[number : number + 1]))
        end = words.tolist().index(0) if 0 in words else len(words) - 1
        for panel in row[end + 2 :]:
            panel.set_visible(False)
        for panel, word, look in zip(row[1:], words[: end + 1], looks):
            light = F.interpolate(look.view(1, 1, PLACES, PLACES) / look.max(), SIZE, mode="nearest")[0, 0]
            panel.imshow(image * (0.15 + 0.85 * light[..., None]))
            panel.set_title(WORDS[word])
    save_figure(figure, path)


def compare(options: argparse.Namespace) -> None:
    models = {name: train(name, options.steps, options.runs, options.seed) for name in KINDS}
    for name, model in models.items():
        print(f"{name:<5} attention: {accuracy(model):6.1%} of captions right to the last word")
    draw(models, options.out)


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.number("--steps", 800, "of training, for each kind")
    parser.seed()
    parser.folder("--runs", "caption_runs")
    parser.picture("--out", "caption.png")
    parser.run(compare)
