"""BERT is pre-trained on a text: it fills in masked words (MLM) and tells which sentence follows which (NSP).

python examples/pretrain_bert.py [--text FILE] [--out runs/pretrain_bert]   (pip install '.[examples]')

The text has a sentence a line and an empty line between documents; a tenth is held out and tells the numbers. Without
one, 8 documents are made up, each about its own topic: that is, what word follows a word. The folder gets the picture,
the model and its vocabulary, and checkpoints: the same command goes on after a stop. Words are masked and pairs drawn
anew at each step. --model goes on from a trained BERT, --config says how large a new one is (a BERT's config.json).
"""

import argparse
import random
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attnkern.nn import BertConfig, BertForPreTraining, WordPiece
from attnkern.training import Run, Script, Settings, adamw, descend, new_figure, read_examples, save_figure

MASKED, MOST_MASKED, BATCH = 0.15, 20, 64
IGNORED = -100  # cross_entropy's
SMALL = BertConfig(
    8000, 64, 2, 4, 128, initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Document = list[list[int]]  # the token ids of its sentences


def made_up(seed: int) -> list[list[str]]:
    """8 documents, long enough not to be learned by heart. Each has 12 words of its own, each with one that follows it
    nine times of ten."""
    chance = random.Random(seed)
    words = ["".join(parts) for parts in product("bdfgklmn", "aeiou", "lmnrs")]
    words = chance.sample(words, 8 * 12)
    documents = []
    for topic in range(8):
        own = words[topic::8]
        follower = dict(zip(own, own[1:] + own[:1]))
        documents.append([])
        for _ in range(2000):
            sentence = [chance.choice(own)]
            while len(sentence) < 6 or chance.random() < 0.7:
                sentence.append(follower[sentence[-1]] if chance.random() < 0.9 else chance.choice(own))
            documents[-1].append(" ".join(sentence))
    return documents


def read(path: Path, skip_bad: bool) -> list[list[str]]:
    lines = read_examples(path, str.strip, skip_bad)
    return [list(sentences) for full, sentences in groupby(lines, bool) if full]


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Those to learn from, and a tenth held out: of the documents, or of each of them if they are few."""
    if len(documents) >= 20:
        parts = documents[len(documents) // 10 :], documents[: len(documents) // 10]
    else:
        tenths = [len(document) // 10 for document in documents]
        parts = ([d[t:] for d, t in zip(documents, tenths)], [d[:t] for d, t in zip(documents, tenths)])
    return tuple([document for document in part if len(document) > 1] for part in parts)


def draw(count: int) -> int:
    return int(torch.randint(count, ()))


def pair(documents: list[Document], room: int) -> tuple[list[int], list[int], bool]:
    """Two stretches of sentences that fill `room` tokens, and whether the second is random: half of the time, from
    another document; else it follows the first."""
    number, is_random = draw(len(documents)), draw(2) == 1
    document, here = documents[number], draw(len(documents[number]) - 1)
    first, share = [], 1 + draw(room - 1)
    while not first or len(first) < share and here < len(document) - 1:
        first += document[here]
        here += 1
    if is_random:
        document = documents[(number + 1 + draw(len(documents) - 1)) % len(documents)]
        here = draw(len(document))
    second = []
    while not second or len(first) + len(second) < room and here < len(document):
        second += document[here]
        here += 1
    for _ in range(len(first) + len(second) - room):  # the words next to one another stay
        if len(first) > len(second):
            first.pop(0)
        else:
            second.pop()
    return first, second, is_random


class Batch(NamedTuple):
    """The model's arguments, then what is right."""

    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L)
    token_type_ids: Tensor  # (B, L)
    masked_positions: Tensor  # (B, P)
    words: Tensor  # (B, P), the masked words; IGNORED where a row has fewer
    is_random: Tensor  # (B,)


def batch(documents: list[Document], wordpiece: WordPiece, length: int) -> Batch:
    cls, sep = (wordpiece.tokenizer.token_to_id(wordpiece.special[name]) for name in ("cls_token", "sep_token"))
    firsts, seconds, is_random = zip(*(pair(documents, length - 3) for _ in range(BATCH)))
    rows = [torch.tensor([cls, *first, sep, *second, sep]) for first, second in zip(firsts, seconds)]
    types = [torch.arange(len(row)) >= len(first) + 2 for row, first in zip(rows, firsts)]
    ids, types = pad_sequence(rows, True, wordpiece.padding), pad_sequence(types, True).long()
    there = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    ids, places, words = mask(ids, there & (ids != cls) & (ids != sep), wordpiece)
    return Batch(*(x.to(DEVICE) for x in (ids, there, types, places, words, torch.tensor(is_random).long())))


def mask(ids: Tensor, maskable: Tensor, wordpiece: WordPiece) -> tuple[Tensor, Tensor, Tensor]:
    """15% of each row's words, at most 20, to predict: 80% of them masked, 10% another word, 10% left as they are.

    Returns:
        the new ids `(B, L)`, the places `(B, P)` and the words that were there, IGNORED where a row has fewer than P.
    """
    counts = (MASKED * maskable.sum(1, keepdim=True)).round().int().clamp(1, MOST_MASKED)
    places = torch.rand(ids.shape).masked_fill(~maskable, -1).topk(int(counts.max())).indices
    chosen, words, fate = torch.arange(places.shape[1]) < counts, ids.gather(1, places), torch.rand(places.shape)
    new = torch.randint(wordpiece.tokenizer.get_vocab_size(), words.shape)
    new[fate < 0.8] = wordpiece.tokenizer.token_to_id(wordpiece.special["mask_token"])
    new = torch.where(chosen & (fate < 0.9), new, words)
    return ids.scatter(1, places, new), places, words.masked_fill(~chosen, IGNORED)


def measure(model: BertForPreTraining, drawn: Batch) -> dict[str, Tensor]:
    """Both losses, and both shares that are right."""
    *inputs, words, is_random = drawn
    scores, next_scores = model(*inputs)
    is_masked = words != IGNORED
    return {
        "MLM loss": F.cross_entropy(scores.flatten(0, 1), words.flatten(), ignore_index=IGNORED),
        "NSP loss": F.cross_entropy(next_scores, is_random),
        "MLM right": (scores.argmax(-1) == words)[is_masked].float().mean(),
        "NSP right": (next_scores.argmax(-1) == is_random).float().mean(),
    }


def plot(history: dict[str, list[float]], held_out: dict[str, float], path: Path) -> None:
    """Averages of about a hundredth of the run, and the numbers held out as dashed lines."""
    if (figure := new_figure(path, 10, 4)) is None:
        return
    for panel, kind in zip(figure.subplots(1, 2), ("loss", "right")):
        for task, color in (("MLM", "tab:blue"), ("NSP", "tab:red")):
            curve, number = torch.tensor(history[f"{task} {kind}"]), held_out[f"{task} {kind}"]
            width = 1 + len(curve) // 100
            panel.plot(
                torch.arange(len(curve))[width - 1 :], curve.unfold(0, width, 1).mean(1), color=color, label=task
            )
            panel.axhline(number, color=color, linestyle="--", linewidth=0.8, label=f"{task} held out: {number:.3f}")
        panel.set(xlabel="step", ylabel=kind, ylim=(0, 1.02 if kind == "right" else None))
        panel.legend()
    save_figure(figure, path)


def pretrain(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    decides = ("text", "model", "config", "rate", "length", "skip_bad", "seed")
    settings = Settings(options.out, **{name: getattr(options, name) for name in decides})
    texts = made_up(options.seed) if options.text is None else read(options.text, options.skip_bad)
    folder, config = options.model or options.out, BertConfig.from_json(options.config) if options.config else SMALL
    if options.model or (folder / "vocab.txt").exists():
        wordpiece = WordPiece.from_folder(folder)
    else:
        wordpiece = WordPiece.train((sentence for document in texts for sentence in document), config.vocab_size)
    if options.model is None:
        model = BertForPreTraining(replace(config, vocab_size=wordpiece.tokenizer.get_vocab_size()))
    else:
        model = BertForPreTraining.from_folder(options.model)
    longest = model.bert.config.max_position_embeddings
    if not 8 <= options.length <= longest:
        raise ValueError(f"--length must be 8 to {longest}, got {options.length}")
    encoded = (wordpiece.tokenizer.encode_batch(document, add_special_tokens=False) for document in texts)
    learn, held_out = split([[e.ids for e in document if e.ids] for document in encoded])
    if min(len(learn), len(held_out)) < 2:
        raise ValueError(f"{options.text} must have 2 documents of 20 sentences or 20 of 2, got {len(texts)} documents")

    rate = options.rate or (1e-4 if options.model or options.config else 3e-3)
    settings.keep()
    if options.model is None:
        wordpiece.save_folder(folder)
    model.to(DEVICE).train()
    optimizer, schedule = adamw(model, rate, options.steps)
    run = Run(options.out, steps=options.steps, model=model, optimizer=optimizer, schedule=schedule)
    for _ in run:
        measured = measure(model, batch(learn, wordpiece, options.length))
        descend(measured["MLM loss"] + measured["NSP loss"], model, optimizer, schedule)
        run.log(**measured)

    model.eval()
    with torch.inference_mode():
        rows = [measure(model, batch(held_out, wordpiece, options.length)) for _ in range(30)]
    tested = {name: sum(row[name].item() for row in rows) / len(rows) for name in rows[0]}
    plot(run.history, tested, options.out / "pretrain_bert.png")
    model.save_folder(options.out)
    wordpiece.save_folder(options.out)
    print(f"held out, after {run.step} steps: " + ", ".join(f"{name} {number:.4g}" for name, number in tested.items()))
    print(f"saved: {options.out}")


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.add_argument("--text", type=Path, help="a text file (default: one made up)")
    parser.folder("--out", "runs/pretrain_bert")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--model", type=Path, help="folder of a BERT to go on from (default: a new one)")
    start.add_argument("--config", type=Path, help="a new one's config.json (default: 2 layers of 64)")
    parser.number("--steps", 2000, "batches of 64")
    parser.number("--rate", None, "of learning at most (default: 1e-4, for the small one 3e-3)", 1e-12, 10, float)
    parser.number("--length", 32, "tokens of a pair at most", 8)
    parser.add_argument("--skip-bad", action="store_true", help="count and skip lines that are no UTF-8")
    parser.seed()
    parser.run(pretrain)
