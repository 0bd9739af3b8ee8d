"""BERT finds the answers to questions in a text (SQuAD, Rajpurkar et al. 2016 and 2018): trained, run and scored.

python examples/answer_squad.py [--train train.json --dev dev.json] [--model FOLDER] [--out runs/answer_squad]

Files are SQuAD's: version 1, or 2, where some questions have no answer. A text that is longer than the model takes is
read in windows that overlap. Without --train the model only answers --dev; without both, small texts are made up, and
a small new model learns them in a minute or two. The folder gets predictions.json (what the official script scores),
nbest.json, the picture, the model, and checkpoints: the same command goes on after a stop. (pip install '.[examples]')
"""

import argparse
import json
import random
import re
import string
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from attnkern.atomic import written
from attnkern.nn import BertConfig, BertForQuestionAnswering, WordPiece
from attnkern.training import Run, Script, Settings, adamw, descend, new_figure, save_figure

BATCH, N_BEST, LONGEST_ANSWER = 32, 20, 30  # an answer's length is in tokens
SMALL = BertConfig(
    8000, 64, 2, 4, 128, initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FACTS = {  # a question: how a text tells it, and what the answer may be
    "Who bought it?": ("The buyer was ", ["Mary", "John", "Anna", "Hugo", "Olga"], ["", "Brown", "Silva", "Weber"]),
    "What was bought?": ("They took the ", ["red", "old", "small", "heavy"], ["lamp", "drum", "boat", "clock", "tent"]),
    "Where was it bought?": (
        "The shop is in ",
        ["", "North", "West", "New"],
        ["York", "Lima", "Oslo", "Delhi", "Cairo"],
    ),
    "When was it bought?": ("It was on ", ["Monday", "Tuesday", "Friday", "Sunday"], ["", "morning", "evening"]),
    "What did it cost?": ("The price was ", ["five", "ten", "twenty", "ninety"], ["euros", "pounds", "francs"]),
}


class Question(NamedTuple):
    id: str
    question: str
    context: str
    answers: list[tuple[int, str]]  # where in the context each begins; none if it has no answer


class Window(NamedTuple):
    """[CLS] question [SEP] a stretch of the context [SEP], as `WordPiece.batch` takes it."""

    number: int  # the question's
    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    first: int  # the place of the stretch's first token
    offsets: list[tuple[int, int]]  # where in the context each token of the stretch begins and ends
    target: tuple[int, int]  # the places of the answer's first and last token; 0, [CLS], if it is not in here


class Answer(NamedTuple):
    text: str
    start_logit: float
    end_logit: float


def made_up(count: int, seed: int) -> Iterator[Question]:
    """About something that was bought. The text tells some of it, in any order, and the question asks for any of it."""
    chance = random.Random(seed)
    for number in range(count):
        told, asked = chance.sample(list(FACTS), chance.randint(2, len(FACTS))), chance.choice(list(FACTS))
        context, answers = "", []
        for question in told:
            before, first, second = FACTS[question]
            value = f"{chance.choice(first)} {chance.choice(second)}".strip()
            if question == asked:
                answers = [(len(context) + len(before), value)]
            context += f"{before}{value}. "
        yield Question(str(number), asked, context.strip(), answers)


def field(said: Any, name: str, kind: type) -> Any:
    value = said.get(name) if isinstance(said, dict) else None
    if type(value) is not kind:
        raise ValueError(f"{name} must be a {kind.__name__}, got {str(value)[:40]!r}")
    return value


def parse(asked: Any, paragraph: dict) -> list[Question]:
    context, answers = field(paragraph, "context", str), []
    number, question = field(asked, "id", str), field(asked, "question", str)
    for answer in [] if asked.get("is_impossible") else field(asked, "answers", list):
        text, begin = field(answer, "text", str), field(answer, "answer_start", int)
        if begin < 0 or context[begin : begin + len(text)] != text or not text.strip():
            there = context[max(begin, 0) :][: len(text)]
            raise ValueError(f"the answer {text!r} does not stand at {begin}, where {there!r} does")
        answers.append((begin, text))
    if not (answers or asked.get("is_impossible")):
        raise ValueError("has no answer, and is_impossible does not say so")
    return [Question(number, question, context, answers)]


def read(path: Path, skip_bad: bool) -> list[Question]:
    """A file's questions; a bad one raises a ValueError that names it, or is left out with a warning in the end."""
    bad = []

    def attempt(where: str, function, *arguments) -> list:
        try:
            return function(*arguments)
        except ValueError as error:
            bad.append(f"{path}: {where}: {error}")
            if not skip_bad:
                raise ValueError(bad[-1]) from None
            return []

    try:
        articles = field(json.loads(path.read_text(encoding="utf-8")), "data", list)
    except ValueError as error:
        raise ValueError(f"{path} is not in SQuAD's format: {error}") from None
    found = []
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(attempt(f"data[{i}]", field, article, "paragraphs", list)):
            where = f"data[{i}].paragraphs[{j}]"
            for k, asked in enumerate(attempt(where, field, paragraph, "qas", list)):
                name = asked.get("id") if isinstance(asked, dict) else None
                found += attempt(f"question {name or f'{where}.qas[{k}]'}", parse, asked, paragraph)
    if bad:
        warnings.warn(f"{len(bad)} skipped: {'; '.join(bad[:3])}{'; ...' if len(bad) > 3 else ''}", stacklevel=2)
    if not found:
        raise ValueError(f"{path} has no question")
    return found


def windows_of(questions: list[Question], wordpiece: WordPiece, length: int, stride: int) -> list[Window]:
    """Of `length` tokens at most; the next one of the same context begins `stride` tokens later."""
    tokenizer, windows = wordpiece.tokenizer, []
    cls, sep = (tokenizer.token_to_id(wordpiece.special[name]) for name in ("cls_token", "sep_token"))
    asked, contexts = (
        tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for texts in zip(*((q.question, q.context) for q in questions))
    )
    if long := sum(len(encoding) > length // 4 for encoding in asked):
        warnings.warn(f"{long} of {len(asked)} questions are cut to {length // 4} tokens", stacklevel=2)
    for number, (question, words, context) in enumerate(zip(questions, asked, contexts)):
        head = [cls, *words.ids[: length // 4], sep]
        room, answer = length - len(head) - 1, None
        if question.answers:
            begin, text = question.answers[0]
            inside = [place for place, (b, e) in enumerate(context.offsets) if b < begin + len(text) and e > begin]
            answer = (inside[0], inside[-1]) if inside else None
        for at in range(0, max(len(context) - room, 0) + stride, stride):
            stretch = context.ids[at : at + room]
            target = (0, 0)
            if answer and at <= answer[0] and answer[1] < at + len(stretch):
                target = (answer[0] - at + len(head), answer[1] - at + len(head))
            ids = [*head, *stretch, sep]
            types = [0] * len(head) + [1] * (len(stretch) + 1)
            windows.append(
                Window(number, ids, types, [1] * len(ids), len(head), context.offsets[at : at + room], target)
            )
    return windows


def to_learn_from(questions: list[Question], windows: list[Window]) -> list[Window]:
    """All but those of questions whose answer no window holds (it has no token, or too many): they would teach that
    there is none."""
    held = {window.number for window in windows if window.target != (0, 0)}
    lost = {number for number, question in enumerate(questions) if question.answers} - held
    if lost:
        warnings.warn(f"{len(lost)} of {len(questions)} questions left out: no window holds their answer", stacklevel=2)
    if len(lost) == len(questions):
        raise ValueError("no window holds an answer to learn from")
    return [window for window in windows if window.number not in lost]


def train(model, windows: list[Window], wordpiece: WordPiece, options: argparse.Namespace) -> Run:
    optimizer, schedule = adamw(model, 1e-3 if options.model is None else 5e-5, options.steps)
    run = Run(options.out, steps=options.steps, model=model, optimizer=optimizer, schedule=schedule)
    model.train()
    for _ in run:
        drawn = [windows[i] for i in torch.randint(len(windows), (BATCH,)).tolist()]
        targets = torch.tensor([window.target for window in drawn], device=DEVICE)
        logits = model(**inputs(wordpiece, drawn))
        loss = sum(F.cross_entropy(scores, target) for scores, target in zip(logits, targets.T)) / 2
        descend(loss, model, optimizer, schedule)
        run.log(loss=loss)
    return run


def inputs(wordpiece: WordPiece, windows: list[Window]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(DEVICE) for name, tensor in wordpiece.batch(windows).items()}


@torch.inference_mode()
def answer(model, questions: list[Question], windows: list[Window], wordpiece: WordPiece) -> list[list[Answer]]:
    """Each question's best answers in all its windows, the best first; "" says that there is none."""
    from rich.progress import track

    model.eval()
    found = [{} for _ in questions]  # by text
    for start in track(range(0, len(windows), BATCH), description="answers"):
        batch = windows[start : start + BATCH]
        logits = model(**inputs(wordpiece, batch))
        for window, starts, ends in zip(batch, logits.start_logits.cpu(), logits.end_logits.cpu()):
            best, question = found[window.number], questions[window.number]
            for span in spans(window, question.context, starts, ends):
                best[span.text] = max(best.get(span.text, span), span, key=score)
            nothing = Answer("", starts[0].item(), ends[0].item())  # in no window: the least sure one decides
            best[""] = min(best.get("", nothing), nothing, key=score)
    return [sorted(best.values(), key=score, reverse=True)[:N_BEST] for best in found]


def spans(window: Window, context: str, starts: torch.Tensor, ends: torch.Tensor) -> Iterator[Answer]:
    """A window's best ones, by the sum of both scores."""
    length = len(window.offsets)
    starts, ends = (scores[window.first : window.first + length] for scores in (starts, ends))
    allowed = torch.ones(length, length, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    scores = (starts[:, None] + ends).masked_fill(~allowed, float("-inf")).flatten()
    for place in scores.topk(min(N_BEST, int(allowed.sum()))).indices.tolist():
        first, last = divmod(place, length)
        text = context[window.offsets[first][0] : window.offsets[last][1]]
        yield Answer(text, starts[first].item(), ends[last].item())


def score(answer: Answer) -> float:
    return answer.start_logit + answer.end_logit


def normalise(text: str) -> list[str]:
    """The words that count: lower case, no punctuation, no articles."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_and_f1(said: str, answers: list[str]) -> tuple[float, float]:
    """0 to 1, by the answer that suits best, as SQuAD's script; no answer is right where there is none."""
    said, exact, best = normalise(said), 0.0, 0.0
    for right in [words for words in map(normalise, answers) if words] or [[]]:
        exact = max(exact, float(said == right))
        common = (Counter(said) & Counter(right)).total()
        best = max(best, 2 * common / (len(said) + len(right)) if said and right else float(said == right))
    return exact, best


def write_json(path: Path, content: dict) -> None:
    with written(path) as draft:
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.inference_mode()
def draw(model, window: Window, question: Question, wordpiece: WordPiece, losses: list[float], path: Path) -> None:
    """The loss, and where one answer begins and ends, as the model sees it."""
    if (figure := new_figure(path, 14, 4.5)) is None:
        return
    curve, words = figure.subplots(1, 2, width_ratios=[1, 3])
    curve.semilogy(losses)
    curve.set(xlabel="step", ylabel="loss")
    begin = max(0, window.target[0] - 20)
    shown = slice(begin, begin + 45)
    for name, logits, sign in zip(("begins", "ends"), model(**inputs(wordpiece, [window])), (1, -1)):
        words.bar(range(len(window.ids[shown])), sign * logits[0].softmax(0)[shown].cpu().numpy(), label=name)
    words.axvspan(
        window.target[0] - begin - 0.5, window.target[1] - begin + 0.5, color="gold", alpha=0.3, label="right"
    )
    tokens = [wordpiece.tokenizer.id_to_token(number) for number in window.ids[shown]]
    words.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    words.set(title=question.question, ylabel="probability", ylim=(-1.05, 1.05))
    words.legend(loc="upper right")
    save_figure(figure, path)


def load(options: argparse.Namespace, texts: Iterator[str]) -> tuple[BertForQuestionAnswering, WordPiece]:
    """Those of a folder; else new ones, whose vocabulary is the last run's or learned from the texts."""
    if options.model is not None:
        fresh = options.train is not None
        model = BertForQuestionAnswering.from_folder(options.model, fresh_head=fresh)
        return model.to(DEVICE), WordPiece.from_folder(options.model)
    if (options.out / "vocab.txt").exists():
        wordpiece = WordPiece.from_folder(options.out)
    else:
        wordpiece = WordPiece.train(texts, SMALL.vocab_size)
    config = replace(SMALL, vocab_size=wordpiece.tokenizer.get_vocab_size())
    return BertForQuestionAnswering(config).to(DEVICE), wordpiece


def answer_squad(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    if options.train or not options.dev:
        decides = ("train", "model", "length", "stride", "skip_bad", "seed")
        settings = Settings(options.out, **{name: getattr(options, name) for name in decides})
    if options.train is None and options.dev is None:
        learn, dev = list(made_up(4000, options.seed)), list(made_up(500, options.seed + 1))
    else:
        if options.dev is None or options.train is None and options.model is None:
            raise ValueError("--dev FILE is needed, and --train FILE or --model FOLDER, or neither of them")
        learn = read(options.train, options.skip_bad) if options.train else []
        dev = read(options.dev, options.skip_bad)
    model, wordpiece = load(options, (text for question in learn for text in (question.question, question.context)))
    length = options.length or min(384, wordpiece.max_length)
    stride = options.stride or length // 3
    if not 16 <= length <= wordpiece.max_length or not 1 <= stride <= length // 2:
        raise ValueError(
            f"--length must be 16 to {wordpiece.max_length} and --stride 1 to half of it, got {length} and {stride}"
        )
    losses = []
    if learn:
        windows = to_learn_from(learn, windows_of(learn, wordpiece, length, stride))
        settings.keep()
        if options.model is None:
            wordpiece.save_folder(options.out)
        losses = train(model, windows, wordpiece, options).history["loss"]
        model.save_folder(options.out)
        wordpiece.save_folder(options.out)

    windows = windows_of(dev, wordpiece, length, stride)
    n_best = answer(model, dev, windows, wordpiece)
    if all(question.answers for question in dev):  # version 1
        n_best = [[a for a in answers if a.text] or answers for answers in n_best]
    write_json(options.out / "predictions.json", {q.id: answers[0].text for q, answers in zip(dev, n_best)})
    write_json(options.out / "nbest.json", {q.id: with_probabilities(answers) for q, answers in zip(dev, n_best)})
    shown = max(windows, key=lambda window: window.target[0] > 0)  # the first with an answer, if any has one
    draw(model, shown, dev[shown.number], wordpiece, losses, options.out / "answer_squad.png")
    scores = [exact_and_f1(a[0].text, [text for _, text in q.answers]) for q, a in zip(dev, n_best)]
    for name, asked in (("with", True), ("without", False)):
        if of_kind := [both for both, question in zip(scores, dev) if bool(question.answers) == asked]:
            exact, f1 = (sum(numbers) / len(of_kind) for numbers in zip(*of_kind))
            print(f"{len(of_kind)} questions {name} an answer: exact {exact:.1%}, F1 {f1:.1%}")
    exact, f1 = (sum(numbers) / len(scores) for numbers in zip(*scores))
    print(f"all {len(dev)}: exact {exact:.1%}, F1 {f1:.1%}; in {options.out}: predictions.json, nbest.json")


def with_probabilities(answers: list[Answer]) -> list[dict]:
    chances = torch.tensor([score(answer) for answer in answers]).softmax(0).tolist()
    return [answer._asdict() | {"probability": chance} for answer, chance in zip(answers, chances)]


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.add_argument("--train", type=Path, help="SQuAD's JSON to learn from")
    parser.add_argument("--dev", type=Path, help="SQuAD's JSON to answer and to be scored on")
    parser.add_argument("--model", type=Path, help="folder of a BERT to start from (default: a small new one)")
    parser.folder("--out", "runs/answer_squad")
    parser.number("--steps", 600, "batches of 32")
    parser.number("--length", None, "tokens of a window at most (default: 384 if the model takes them)", 16)
    parser.number("--stride", None, "tokens from a window to the next (default: a third of its length)")
    parser.add_argument("--skip-bad", action="store_true", help="count and skip bad questions")
    parser.seed()
    parser.run(answer_squad)
