"""BERT learns to label sentences or pairs: a small one from nothing, or a trained one further.

python examples/classify.py [data.tsv] [--model FOLDER] [--folder runs/classify]   (pip install '.[examples]')

A line of the data is a label, a text and perhaps a second text, separated by tabs, or in a .csv by commas. A fifth of
the lines, drawn by chance, is held out and tells the accuracy. Without data, reviews are made up whose words do not
tell what they say: "the plot was not bad but the cast was never good" is negative, for it ends so and "never" turns
"good". The folder gets the picture, the trained model, and checkpoints: the same command goes on after a stop.
"""

import argparse
import csv
import random
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnkern.nn import BertConfig, BertForSequenceClassification, WordPiece
from attnkern.training import Run, Script, Settings, adamw, descend, new_figure, read_examples, save_figure

HELD_OUT, BATCH = 0.2, 32
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SMALL |= {"initializer_range": 0.1, "attention_probs_dropout_prob": 0.0}  # which costs more than the rest on a CPU
GOOD = ["good", "great", "fine", "funny", "clever", "moving", "superb", "charming"]
BAD = ["bad", "dull", "weak", "boring", "clumsy", "empty", "awful", "tiresome"]
TURNS = ["not", "never", "hardly", "far from"]
DEGREES = ["", "really", "very", "quite", "so", "all that"]
PARTS = ["plot", "cast", "music", "ending", "script", "camera", "story", "hero"]


class Example(NamedTuple):
    label: str
    text: str
    pair: str | None = None


def parse_tab(line: str) -> Example:
    return example(line.split("\t"))


def parse_comma(line: str) -> Example:
    try:
        return example(next(csv.reader([line], strict=True), []))
    except csv.Error as error:
        raise ValueError(error) from None


def example(fields: list[str]) -> Example:
    if len(fields) not in (2, 3) or not fields[0].strip():
        raise ValueError(f"expected a label, a text and perhaps a second text, got {len(fields)} fields")
    return Example(fields[0].strip(), *fields[1:])


def reviews(count: int, seed: int) -> list[Example]:
    """Different ones. What a clause says is its adjective, turned by a word before it; the last clause counts."""
    chance, found = random.Random(seed), {}
    while len(found) < count:
        clauses = []
        for part in chance.sample(PARTS, chance.choice((1, 2))):
            turn, good = chance.choice((None, chance.choice(TURNS))), chance.random() < 0.5
            words = ["the", part, "was", turn, chance.choice(DEGREES), chance.choice(GOOD if good else BAD)]
            clauses.append(" ".join(filter(None, words)))
        found[" but ".join(clauses)] = "positive" if good != bool(turn) else "negative"
    return [Example(label, text) for text, label in found.items()]


def split(examples: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Those to learn from, and those held out."""
    shuffled = random.Random(seed).sample(examples, len(examples))
    held_out = max(1, int(len(examples) * HELD_OUT))
    return shuffled[held_out:], shuffled[:held_out]


def tokenizer(model: Path | None, folder: Path, examples: list[Example]) -> WordPiece:
    """The model's; else the last run's, or one learned from the examples."""
    if model is not None:
        return WordPiece.from_folder(model)
    if (folder / "vocab.txt").exists():
        return WordPiece.from_folder(folder)
    return WordPiece.train((text for example in examples for text in example[1:] if text), max_length=128)


def train(model, encodings: list, labels: Tensor, wordpiece: WordPiece, options: argparse.Namespace) -> Run:
    """Batches drawn by chance; AdamW with a warm-up and a linear decay (Devlin et al. 2018, A.3)."""
    rate = 1e-3 if options.model is None else 5e-5
    optimizer, schedule = adamw(model, rate, options.steps)
    run = Run(options.folder, steps=options.steps, model=model, optimizer=optimizer, schedule=schedule)
    model.train()
    for _ in run:
        drawn = torch.randint(len(encodings), (BATCH,))
        loss = F.cross_entropy(model(**wordpiece.batch([encodings[i] for i in drawn])), labels[drawn])
        descend(loss, model, optimizer, schedule)
        run.log(loss=loss)
    return run


@torch.inference_mode()
def predict(model, encodings: list, wordpiece: WordPiece) -> Tensor:
    model.eval()
    batches = (encodings[start : start + BATCH] for start in range(0, len(encodings), BATCH))
    return torch.cat([model(**wordpiece.batch(batch)).argmax(1) for batch in batches])


def draw(losses: list[float], counts: Tensor, names: list[str], path: Path) -> None:
    """The loss, and how often which label was taken for which."""
    if (figure := new_figure(path, 10, 4.5)) is None:
        return
    curve, matrix = figure.subplots(1, 2)
    curve.plot(losses)
    curve.set(xlabel="step", ylabel="loss", ylim=(0, None))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    matrix.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in torch.cartesian_prod(torch.arange(len(names)), torch.arange(len(names))).tolist():
        color = "white" if shares[row, column] > 0.5 else "black"
        matrix.text(column, row, int(counts[row, column]), ha="center", va="center", color=color)
    matrix.set(xlabel="said", ylabel="right", title="held out", xticks=range(len(names)), yticks=range(len(names)))
    matrix.set_xticklabels(names, rotation=45)
    matrix.set_yticklabels(names)
    save_figure(figure, path)


def classify(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    decides = ("data", "model", "skip_bad", "seed")
    settings = Settings(options.folder, **{name: getattr(options, name) for name in decides})
    if options.data is None:
        examples = reviews(4000, options.seed)
    else:
        parse = parse_comma if options.data.suffix == ".csv" else parse_tab
        examples = read_examples(options.data, parse, options.skip_bad)
    names = sorted({example.label for example in examples})
    if len(names) < 2:
        raise ValueError(f"{options.data} must have at least 2 labels, got {', '.join(names) or 'no line'}")
    id2label = dict(enumerate(names))
    learn, held_out = split(examples, options.seed)
    wordpiece = tokenizer(options.model, options.folder, learn)
    if options.model is None:
        words = wordpiece.tokenizer.get_vocab_size()
        config = BertConfig(words, **SMALL, max_position_embeddings=wordpiece.max_length, id2label=id2label)
        model = BertForSequenceClassification(config)
    else:
        model = BertForSequenceClassification.from_folder(options.model, fresh_head=True, id2label=id2label)

    encoded, labels = [], []
    for part in (learn, held_out):
        said, texts, pairs = zip(*part)
        encoded.append(wordpiece.encode(texts, pairs))
        labels.append(torch.tensor([names.index(label) for label in said]))
    settings.keep()
    if options.model is None:
        wordpiece.save_folder(options.folder)
    run = train(model, encoded[0], labels[0], wordpiece, options)

    predicted = predict(model, encoded[1], wordpiece)
    counts = torch.zeros(len(names), len(names)).index_put_(
        (labels[1], predicted), torch.ones(len(predicted)), accumulate=True
    )
    draw(run.history["loss"], counts, names, options.folder / "classify.png")
    model.save_folder(options.folder / "model")
    wordpiece.save_folder(options.folder / "model")
    print(f"{counts.trace() / counts.sum():.1%} of {len(held_out)} held-out examples right after {run.step} steps")
    print(f"saved: {options.folder / 'model'}")


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.add_argument("data", nargs="?", type=Path, help="a .tsv or .csv (default: reviews made up)")
    parser.add_argument("--model", type=Path, help="a BERT's folder to start from (default: a small new one)")
    parser.folder("--folder", "runs/classify")
    parser.number("--steps", 800, "batches of 32")
    parser.add_argument("--skip-bad", action="store_true", help="count and skip malformed lines")
    parser.seed()
    parser.run(classify)
