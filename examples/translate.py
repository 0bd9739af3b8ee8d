"""A Transformer (Vaswani et al. 2017) learns to translate, with global, local and hard attention to the source.

python examples/translate.py                               number words to digits         (pip install '.[examples]')
python examples/translate.py --attention global local hard
python examples/translate.py --task dates --languages en de fr --steps 1500
python examples/translate.py --source train.de --target train.en --vocabulary 32000 --dim 512 --layers 6 \\
    --steps 100000 --warm-up 4000 --lr 7e-4 --dropout 0.1

All text goes through one sentencepiece vocabulary. What is learned is tried on pairs that were held out, with greedy
and beam search: the share that is right to the letter, and BLEU by sacrebleu (of characters, for numbers and dates).
The folder `--out` keeps vocabulary, checkpoints and a picture of where the attention looked; a run that was stopped
goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attnkern.atomic import written
from attnkern.nn import Global, Hard, Local, Transformer, beam_search, greedy, warm_up
from attnkern.training import BadLine, Run, Script, Settings, descend, new_figure, save_figure

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

KINDS = {"global": Global(), "local": Local(center="predicted"), "hard": Hard(straight_through=True)}
DATES = ("full", "long", "medium", "d MMM yyyy", "EEE, dd.MM.yyyy", "MMMM d, yyyy")
PADDING, BEGIN, END, UNKNOWN = range(4)
HELD_OUT, GENERATED = 1000, 30_000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Pairs = list[tuple[str, str]]


def numbers(languages: list[str]) -> Pairs:
    """Number words of different numbers under 100,000, and their digits."""
    from num2words import num2words

    chosen = torch.randperm(100_000)[:GENERATED].tolist()
    return [(num2words(n, lang=languages[i % len(languages)]), str(n)) for i, n in enumerate(chosen)]


def dates(languages: list[str]) -> Pairs:
    """Different days from 1900 on, as people write them and as ISO does."""
    from babel.dates import format_date

    pairs = []
    for i, n in enumerate(torch.randperm(150 * 365)[:GENERATED].tolist()):
        day, form = date.fromordinal(date(1900, 1, 1).toordinal() + n), DATES[i // len(languages) % len(DATES)]
        pairs.append((format_date(day, form, languages[i % len(languages)]), day.isoformat()))
    return pairs


GENERATORS = {"numbers": numbers, "dates": dates}


def parallel(paths: list[str], skip_bad: bool) -> Pairs:
    """The lines of two text files, side by side, shuffled."""
    sides = [Path(path).read_bytes().removesuffix(b"\n").split(b"\n") for path in paths]
    if len(sides[0]) != len(sides[1]):
        raise BadLine(f"{paths[1]}: must have as many lines as {paths[0]}, {len(sides[0])}, got {len(sides[1])}")
    pairs, bad = [], []
    for number, lines in enumerate(zip(*sides), 1):
        try:
            pairs.append(tuple(text(line, f"{path}:{number}") for line, path in zip(lines, paths)))
        except BadLine as error:
            if not skip_bad:
                raise BadLine(f"{error} (--skip-bad leaves such pairs out)") from None
            bad.append(error)
    if bad:
        warnings.warn(f"{len(bad)} of {number} pairs skipped, the first for {bad[0]}", stacklevel=2)
    if len(pairs) <= 2:
        raise BadLine(f"{paths[0]}: must have at least 3 pairs, got {len(pairs)}")
    return [pairs[n] for n in torch.randperm(len(pairs)).tolist()]


def text(line: bytes, place: str) -> str:
    try:
        found = line.decode().strip()
    except UnicodeDecodeError as error:
        raise BadLine(f"{place}: {error}") from None
    if not found:
        raise BadLine(f"{place}: empty")
    return found


def learn_vocabulary(pairs: Pairs, size: int) -> bytes:
    """A joint sentencepiece model of both sides, at most that large."""
    from sentencepiece import SentencePieceTrainer

    model = BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=(text for pair in pairs for text in pair), model_writer=model, vocab_size=size,
            hard_vocab_limit=False, split_digits=True, character_coverage=1.0, minloglevel=2,
            pad_id=PADDING, bos_id=BEGIN, eos_id=END, unk_id=UNKNOWN,
        )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"--vocabulary {size}: sentencepiece cannot make it ({error})") from None
    return model.getvalue()


def fitting(pairs: Pairs, vocabulary: SentencePieceProcessor, most: int) -> Pairs:
    """Those pairs of which neither side has more pieces than that, with END."""
    sides = [vocabulary.encode([pair[side] for pair in pairs]) for side in range(2)]
    found = [pair for pair, *pieces in zip(pairs, *sides) if max(map(len, pieces)) < most]
    if not found:
        raise ValueError(f"--max-length {most}: every pair has more pieces")
    if len(found) < len(pairs):
        left_out = len(pairs) - len(found)
        warnings.warn(f"{left_out} of {len(pairs)} pairs left out: more than --max-length {most} pieces", stacklevel=2)
    return found


def in_pieces(pairs: Pairs, vocabulary: SentencePieceProcessor) -> list[tuple[Tensor, Tensor]]:
    """Ids of each pair: the source ends with END; the target begins with BEGIN too."""
    sides = [vocabulary.encode([pair[side] for pair in pairs]) for side in range(2)]
    return [(torch.tensor([*source, END]), torch.tensor([BEGIN, *target, END])) for source, target in zip(*sides)]


def together(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return tuple(pad_sequence(side, batch_first=True, padding_value=PADDING).to(DEVICE) for side in zip(*pairs))


def heads(dim: int) -> int:
    return max(4, dim // 64)


def train(model: Transformer, pairs: list[tuple[Tensor, Tensor]], folder: Path, options) -> Run:
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, betas=(0.9, 0.98), eps=1e-9)
    schedule = warm_up(optimizer, options.warm_up)
    run = Run(folder, steps=options.steps, model=model, optimizer=optimizer, schedule=schedule)
    for _ in run:
        source, target = together([pairs[n] for n in torch.randint(len(pairs), (options.batch,)).tolist()])
        logits = model(source, target[:, :-1])
        loss = F.cross_entropy(
            logits.transpose(1, 2), target[:, 1:], ignore_index=PADDING, label_smoothing=options.smoothing
        )
        descend(loss, model, optimizer, schedule, clip=None)
        run.log(loss=loss)
    return run


def translate(model: Transformer, sources: list[Tensor], beam: int, most: int) -> list[list[int]]:
    """The ids that the model writes, by greedy search where `beam` is 1."""
    sentences = []
    for at in range(0, len(sources), 100):
        source = pad_sequence(sources[at : at + 100], batch_first=True, padding_value=PADDING).to(DEVICE)
        with torch.no_grad():
            state = model.encode(source, most)
        first = source.new_full((len(source),), BEGIN)
        if beam == 1:
            words = greedy(model.step, state, first, END, most)
        else:
            words = beam_search(model.step, state, first, END, most, beam)[0][:, 0]
        sentences += words.tolist()
    return sentences


def score(model: Transformer, held_out: Pairs, vocabulary: SentencePieceProcessor, beam: int, options) -> dict:
    """Share right to the letter and BLEU of what the model makes of the held-out sources."""
    from sacrebleu.metrics import BLEU

    references = [target for _, target in held_out]
    sources = [source for source, _ in in_pieces(held_out, vocabulary)]
    sentences = translate(model, sources, beam, options.max_length)
    texts = [vocabulary.decode(words[: words.index(END)] if END in words else words) for words in sentences]
    exact = sum(text == reference for text, reference in zip(texts, references)) / len(texts)
    bleu = BLEU(tokenize="13a" if options.source else "char").corpus_score(texts, [references])
    return {"exact": exact, "bleu": bleu.score, "text": texts[0]}


@torch.no_grad()
def draw(models: dict, runs: dict, example: tuple[str, str], vocabulary: SentencePieceProcessor, path: Path) -> None:
    """The losses, and where the last layer's heads look, on average, when the example is written."""
    if (figure := new_figure(path, 4 * len(models) + 4, 4)) is None:
        return
    *panels, curves = figure.subplots(1, len(models) + 1)
    source, target = ([*vocabulary.encode(text), END] for text in example)
    for panel, (name, model) in zip(panels, models.items()):
        words = (torch.tensor([ids], device=DEVICE) for ids in (source, [BEGIN, *target[:-1]]))
        weights = model.align(*words)
        panel.imshow(weights[0, -1].mean(0).cpu().numpy(), cmap="magma_r", vmin=0, vmax=1, aspect="auto")
        panel.set_xticks(range(len(source)), vocabulary.id_to_piece(source), rotation=90)
        panel.set_yticks(range(len(target)), vocabulary.id_to_piece(target))
        panel.set(title=name, xlabel="source", ylabel="written")
        curves.plot(runs[name].history["loss"], label=name)
    curves.set(title="loss", xlabel="step")
    curves.legend()
    save_figure(figure, path)


def settle(options) -> tuple[Pairs, Pairs, SentencePieceProcessor]:
    """What to learn, what is held out, and the vocabulary; the folder keeps what the next command must agree with.

    Raises:
        ValueError, OSError: what is wrong, in a sentence; the folder is as it was.
    """
    from sentencepiece import SentencePieceProcessor

    kept = {name: value for name, value in vars(options).items() if name not in ("out", "beam", "attention", "steps")}
    settings, learned = Settings(options.out, **kept), options.out / "vocabulary.model"
    torch.manual_seed(options.seed)
    if options.source:
        pairs = parallel([options.source, options.target], options.skip_bad)
    else:
        try:
            pairs = GENERATORS[options.task](options.languages)
        except (NotImplementedError, LookupError, ValueError) as error:
            raise ValueError(f"--languages {' '.join(options.languages)}: not all are known ({error})") from None
    held = min(HELD_OUT, len(pairs) // 3)
    pairs, held_out = pairs[:-held], pairs[-held:]
    model = learned.read_bytes() if learned.exists() else learn_vocabulary(pairs, options.vocabulary)
    vocabulary = SentencePieceProcessor(model_proto=model)
    pairs, held_out = (fitting(part, vocabulary, options.max_length) for part in (pairs, held_out))
    settings.keep()
    with written(learned) as draft:
        draft.write_bytes(model)
    return pairs, held_out, vocabulary


def compare(pairs: Pairs, held_out: Pairs, vocabulary: SentencePieceProcessor, options) -> None:
    """Trains each kind of attention, tries it on what was held out, and draws."""
    ids = in_pieces(pairs, vocabulary)
    models, runs = {}, {}
    print(f"{len(ids)} pairs, {vocabulary.vocab_size()} pieces: {' -> '.join(pairs[0])}")
    for name in options.attention:
        torch.manual_seed(options.seed)
        models[name] = model = Transformer(
            vocabulary.vocab_size(), options.dim, heads(options.dim), options.layers, 4 * options.dim,
            options.dropout, pre_norm=True, cross_attention=KINDS[name],
        ).to(DEVICE)  # fmt: skip
        began = time.perf_counter()
        runs[name] = train(model, ids, options.out / name, options)
        print(f"{name}: loss {runs[name].history['loss'][-1]:.3f}, {time.perf_counter() - began:.0f} s")
        model.eval()
        for how, beam in (("greedy", 1), (f"beam {options.beam}", options.beam)):
            found = score(model, held_out, vocabulary, beam, options)
            example = f"{held_out[0][0]} -> {found['text']}"
            print(f"  {how:<8} {found['exact']:7.2%} exact, BLEU {found['bleu']:6.2f}: {example}")
    draw(models, runs, held_out[0], vocabulary, options.out / "attention.png")


def main() -> None:
    parser = Script(__doc__)
    parser.add_argument("--task", choices=GENERATORS, default="numbers", help="generated")
    parser.add_argument("--languages", nargs="+", default=["en"], help="of the generated text (default: en)")
    parser.add_argument("--source", type=Path, help="a text file, one sentence a line, instead of --task")
    parser.add_argument("--target", type=Path, help="its translation, line by line")
    parser.add_argument("--skip-bad", action="store_true", help="leave out pairs with a side that is empty or no text")
    parser.add_argument(
        "--attention", nargs="+", choices=KINDS, default=["global"], help="to the source (default: global)"
    )
    parser.number("--steps", 600, "of training, for each kind of attention")
    parser.number("--batch", 64, "pairs a step")
    parser.number("--warm-up", 200, "steps until the learning rate is highest")
    parser.number("--dim", 64, "features of a word")
    parser.number("--layers", 2, "in the encoder, and in the decoder")
    parser.number("--vocabulary", 300, "sentencepiece's pieces, at most")
    parser.number("--max-length", 100, "pieces of a sentence, at most")
    parser.number("--beam", 4, "sentences that beam search keeps")
    parser.number("--lr", 1e-3, "highest learning rate", 0, 10, float)
    parser.number("--dropout", 0.0, "0.1 in the paper", 0, 1, float)
    parser.number("--smoothing", 0.1, "of labels", 0, 1, float)
    parser.seed()
    parser.folder("--out", "translate")

    def run(options: argparse.Namespace) -> None:
        if options.dim % heads(options.dim):
            parser.error(f"--dim must be a multiple of its {heads(options.dim)} heads, got {options.dim}")
        if bool(options.source) != bool(options.target):
            parser.error("--source and --target go together")
        try:
            compare(*settle(options), options)
        except (ValueError, OSError) as error:  # BadLine and ResumeError are ValueErrors
            parser.error(str(error))

    parser.run(run)


if __name__ == "__main__":
    main()
