"""BERT finds names in sentences (NER), with three heads side by side: linear, CRF, and BiLSTM with CRF.

python examples/tag_ner.py [data.txt] [--model FOLDER] [--out runs/tag_ner]   (pip install '.[examples]')

A line of the data is a word and, last, its tag: O, or B- and I- and a kind, "Berlin B-LOC"; an empty line ends a
sentence. A fifth of the sentences, drawn by chance, is held out and tells the entities' F1 (seqeval). Without data,
sentences are made up in which a title says what kind of name follows, "lake arden brook calder dean", and a small new
BERT reads them through windows of one word to each side. Far from its title a name's word does not tell its kind: only
the tag before it does. A CRF scores tags in a row (Lafferty 2001), the linear head each alone. --out gets the picture,
the models, and checkpoints: the same command goes on after a stop.
"""

import argparse
import random
import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.nn import BertConfig, BertForTokenClassification, Local, WordPiece
from attnkern.training import Run, Script, Settings, adamw, descend, new_figure, read_examples, save_figure

HELD_OUT, BATCH = 0.2, 32
HEADS = ("linear", "crf", "bilstm-crf")
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SMALL |= {"initializer_range": 0.1, "attention_probs_dropout_prob": 0.0}  # which costs more than the rest on a CPU
TITLES = {"PER": ["mr", "dr", "lady", "captain"], "ORG": ["bank", "club", "union"], "LOC": ["lake", "mount", "port"]}
NAMES = ["arden", "brook", "calder", "dean", "esk", "fenn", "garth", "holm", "irwell", "kent", "lune", "mersey"]
OTHERS = ["today", "we", "saw", "the", "old", "friends", "of", "and", "near", "heard", "about", "again"]


class Sentence(NamedTuple):
    words: list[str]
    tags: list[str]


def parse(line: str) -> tuple[str, str] | None:
    """A word and its tag; None between sentences."""
    fields = line.split()
    if not fields or fields[0] == "-DOCSTART-":
        return None
    if len(fields) < 2:
        raise ValueError(f"expected a word and a tag, got {line.strip()!r}")
    if not re.fullmatch(r"O|[BI]-\S+", fields[-1]):
        raise ValueError(f"a tag must be O, B-kind or I-kind, got {fields[-1]!r}")
    return fields[0], fields[-1]


def read(path: Path, skip_bad: bool) -> list[Sentence]:
    lines = groupby(read_examples(path, parse, skip_bad), key=lambda line: line is None)
    return [Sentence(*map(list, zip(*words))) for between, words in lines if not between]


def made_up(count: int, seed: int) -> list[Sentence]:
    """Names of four to seven words, whose first one is a title."""
    chance, found = random.Random(seed), []
    for _ in range(count):
        words, tags = [], []
        for _ in range(chance.randint(1, 2)):
            others = chance.choices(OTHERS, k=chance.randint(1, 4))
            kind = chance.choice(list(TITLES))
            name = [chance.choice(TITLES[kind]), *chance.choices(NAMES, k=chance.randint(3, 6))]
            words += others + name
            tags += ["O"] * len(others) + [f"B-{kind}"] + [f"I-{kind}"] * (len(name) - 1)
        found.append(Sentence([*words, chance.choice(OTHERS)], [*tags, "O"]))
    return found


class Tagger(BertForTokenClassification):
    """Scores of tags for each word, from its first token; with a CRF, of tags in a row."""

    def __init__(self, config: BertConfig, head: str = "linear", **options):
        super().__init__(config, **options)
        width = config.hidden_size
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True) if head == "bilstm-crf" else None
        self.crf = None
        if head != "linear":
            from torchcrf import CRF

            self.crf = CRF(config.num_labels, batch_first=True)

    def scores(self, tokens: dict[str, Tensor], first: Tensor, real: Tensor) -> Tensor:
        """`(B, words, tags)`. first: where each word begins, `(B, words)`; real: where there is one."""
        hidden = self.bert(**tokens).last_hidden_state
        words = hidden.gather(1, first.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        if self.lstm is not None:
            packed = nn.utils.rnn.pack_padded_sequence(words, real.sum(1), batch_first=True, enforce_sorted=False)
            words, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.classifier(self.dropout(words))

    def loss(self, scores: Tensor, real: Tensor, tags: Tensor) -> Tensor:
        if self.crf is None:
            return F.cross_entropy(scores[real], tags[real])
        return -self.crf(scores, tags, real, reduction="token_mean")

    def best(self, scores: Tensor, real: Tensor) -> list[list[int]]:
        """The likeliest tags of each sentence; of each word alone, without a CRF."""
        if self.crf is not None:
            return self.crf.decode(scores, real)
        return [row[:length].tolist() for row, length in zip(scores.argmax(-1), real.sum(1))]


class Data:
    """Encoded sentences; words that were cut off, or have no token ("\\u200b"), are left to the tag O.

    Attributes:
        places: of each sentence, which of its words have tokens.
        first, tags: for each of those its first token, and its tag.
        numbers: the sentences that have any.
    """

    def __init__(self, sentences: list[Sentence], wordpiece: WordPiece, names: list[str]):
        self.sentences, self.wordpiece = sentences, wordpiece
        self.encodings = wordpiece.encode([sentence.words for sentence in sentences])
        self.places, self.first, self.tags = [], [], []
        for encoding, sentence in zip(self.encodings, sentences):
            begins = {word: place for place, word in reversed(list(enumerate(encoding.word_ids))) if word is not None}
            self.places.append(sorted(begins))
            self.first.append(torch.tensor([begins[word] for word in sorted(begins)]))
            self.tags.append(torch.tensor([names.index(sentence.tags[word]) for word in sorted(begins)]))
        self.numbers = [number for number, places in enumerate(self.places) if places]

    def batch(self, numbers: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Tokens; where words begin, where there are any, and their tags, each `(B, words)`."""
        first, tags = (
            nn.utils.rnn.pad_sequence([part[number] for number in numbers], batch_first=True, padding_value=-1)
            for part in (self.first, self.tags)
        )
        tokens = self.wordpiece.batch([self.encodings[number] for number in numbers])
        return tokens, first.clamp(min=0), first >= 0, tags.clamp(min=0)


def train(model: Tagger, data: Data, folder: Path, steps: int, rate: float) -> list[float]:
    optimizer, schedule = adamw(model, rate, steps)
    run = Run(folder, steps=steps, model=model, optimizer=optimizer, schedule=schedule)
    model.train()
    for _ in run:
        tokens, first, real, tags = data.batch([data.numbers[i] for i in torch.randint(len(data.numbers), (BATCH,))])
        loss = model.loss(model.scores(tokens, first, real), real, tags)
        descend(loss, model, optimizer, schedule)
        run.log(loss=loss)
    return run.history["loss"]


@torch.no_grad()
def tag(model: Tagger, data: Data, names: list[str]) -> list[list[str]]:
    model.eval()
    found = [["O"] * len(sentence.words) for sentence in data.sentences]
    for start in range(0, len(data.numbers), BATCH):
        numbers = data.numbers[start : start + BATCH]
        tokens, first, real, _ = data.batch(numbers)
        for number, best in zip(numbers, model.best(model.scores(tokens, first, real), real)):
            for place, tag in zip(data.places[number], best):
                found[number][place] = names[tag]
    return found


def draw(losses: dict[str, list[float]], scores: dict[str, float], rows: dict[str, list[str]], words, path: Path):
    """The losses, and the tags that each head gives one held-out sentence."""
    if (figure := new_figure(path, max(9, 0.8 * len(words)), 6)) is None:
        return
    curves, table = figure.subplots(2, 1)
    for name, curve in losses.items():
        curves.plot(curve, label=f"{name}, F1 {scores[name]:.1%}")
    curves.set(xlabel="step", ylabel="loss of a word", ylim=(0, None))
    curves.legend()
    colors = ["white", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"]
    kinds = sorted({tag[2:] for row in rows.values() for tag in row if tag != "O"})
    color = {kind: colors[1 + place % 6] for place, kind in enumerate(kinds)} | {"": "white"}
    table.axis("off")
    cells = table.table(
        [words, *rows.values()], rowLabels=["", *rows], loc="center", cellLoc="center",
        cellColours=[["white"] * len(words), *[[color[tag[2:]] for tag in row] for row in rows.values()]],
    )  # fmt: skip
    cells.scale(1, 1.8)
    save_figure(figure, path)


def compare(options: argparse.Namespace) -> dict[str, float]:
    """The F1 of each head on what is held out."""
    from seqeval.metrics import f1_score

    decides = ("data", "model", "skip_bad", "seed")
    settings = Settings(options.out, **{name: getattr(options, name) for name in decides})
    sentences = made_up(1500, options.seed) if options.data is None else read(options.data, options.skip_bad)
    if len(sentences) < 2:
        raise ValueError(f"{options.data} must have at least 2 sentences, got {len(sentences)}")
    shuffled = random.Random(options.seed).sample(sentences, len(sentences))
    held_out = max(1, int(len(sentences) * HELD_OUT))
    names = sorted({"O", *(tag for sentence in sentences for tag in sentence.tags)})
    folder = options.model or options.out
    if options.model or (folder / "vocab.txt").exists():
        wordpiece = WordPiece.from_folder(folder)
    else:
        wordpiece = WordPiece.train((" ".join(sentence.words) for sentence in sentences), max_length=128)
    learn, test = (Data(part, wordpiece, names) for part in (shuffled[held_out:], shuffled[:held_out]))
    if not learn.numbers:
        raise ValueError(f"{options.data} must have a sentence with a word that has a token, got none to learn from")

    losses, scores, rows = {}, {}, {"held out": test.sentences[0].tags}
    for head in options.head:
        torch.manual_seed(options.seed)
        labels = {"head": head, "id2label": dict(enumerate(names))}
        if options.model is None:
            config = BertConfig(wordpiece.tokenizer.get_vocab_size(), **SMALL, id2label=labels["id2label"])
            model = Tagger(config, head, attention=Local(1)) if options.data is None else Tagger(config, head)
        else:
            model = Tagger.from_folder(options.model, fresh_head=True, **labels)
        settings.keep()
        if options.model is None:
            wordpiece.save_folder(folder)
        rate = 2e-3 if options.model is None else 5e-5
        losses[head] = train(model, learn, options.out / head, options.steps, rate)
        found = tag(model, test, names)
        scores[head], rows[head] = f1_score([sentence.tags for sentence in test.sentences], found), found[0]
        model.save_folder(options.out / head / "model")
        print(f"{head:<10} F1 {scores[head]:6.1%} of the entities in {held_out} held-out sentences")
    draw(losses, scores, rows, test.sentences[0].words, options.out / "tag_ner.png")
    return scores


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    return parser().parse_args(given)


def parser() -> Script:
    parser = Script(__doc__)
    parser.add_argument("data", nargs="?", type=Path, help="a CoNLL file (default: sentences made up)")
    parser.add_argument("--model", type=Path, help="a BERT's folder to start from (default: a small new one)")
    parser.add_argument("--head", nargs="+", choices=HEADS, default=HEADS, help="which to train (default: all)")
    parser.folder("--out", "runs/tag_ner")
    parser.number("--steps", 300, "batches of 32")
    parser.add_argument("--skip-bad", action="store_true", help="count and skip malformed lines")
    parser.seed()
    return parser


if __name__ == "__main__":
    parser().run(compare)
