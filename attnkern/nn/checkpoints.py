"""BERT's weights from and to folders: Hugging Face's, and Google's TensorFlow checkpoints."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from attnkern.atomic import written
from attnkern.nn.bert_config import BertConfig
from attnkern.nn.bert_names import ENCODER, HEADS, TIED, from_google, from_huggingface, neutral, to_google
from attnkern.nn.tensor_bundle import INTEGERS, STRING, BundleError, Entry, TensorBundle, write_bundle

Model = TypeVar("Model", bound="Checkpointed")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
GOOGLE_CONFIG, GOOGLE_WEIGHTS = "bert_config.json", "bert_model.ckpt"

POWERS = ("beta1_power", "beta2_power")  # Adam's


class CheckpointError(ValueError):
    """A folder holds no BERT, a damaged one, or another one; the message names every tensor that does not fit."""


class Checkpointed(nn.Module):
    """A model whose weights come from a folder and go to one."""

    @classmethod
    def from_folder(cls: type[Model], path: str | Path, *, fresh_head: bool = False, **options) -> Model:
        """The model with a folder's weights, in float32 and in evaluation mode.

        The folder is Hugging Face's (`config.json`, `model.safetensors`) or Google's (`bert_config.json`,
        `bert_model.ckpt.index` and its data). Heads in it that this class has no use for are skipped, and so is the
        state of an optimizer.

        Args:
            fresh_head: the head starts anew, whatever the folder has; so do a pooler and predicted centres if it has
                none. Else everything must be there.
            options: the class's own arguments, or `BertConfig`'s fields where they shall differ from the folder's.

        Raises:
            FileNotFoundError: there is no such folder, or a file is missing.
            CheckpointError: tensors are missing, extra or misshaped, all of them named, or a file is damaged.
            ValueError: the config is not one of such a BERT.
            ImportError: safetensors is not installed.
        """
        source = _open(Path(path))
        names = {field.name for field in fields(BertConfig)}
        overrides = {name: options.pop(name) for name in names & options.keys()}
        config = BertConfig.from_json(source.config, **overrides)
        with torch.device("meta"):  # random numbers that nobody needs would take longer than all else
            model = cls(config, **options)
        state = _fitting(model, source, fresh_head)
        if {name for name, _ in (*model.named_parameters(), *model.named_buffers())} <= state.keys():
            model.load_state_dict(state, assign=True)
        else:
            model = cls(config, **options)
            model.load_state_dict(state, strict=False)
        return model.eval()

    def save_folder(self, path: str | Path, format: Literal["huggingface", "tensorflow"] = "huggingface") -> None:
        """Writes what `from_folder` reads; files appear whole or not at all.

        Google's format is in float32. The tokenizer is `WordPiece.save_folder`'s.

        Raises:
            ValueError: format is neither of the two.
            OSError: a file cannot be written.
            ImportError: safetensors is not installed.
        """
        if format not in ("huggingface", "tensorflow"):
            raise ValueError(f"format must be 'huggingface' or 'tensorflow', got {format!r}")
        path, encoder = Path(path), getattr(self, "bert", self)
        tensors = {}
        for name, tensor in self.state_dict().items():
            names = neutral(name)
            tensors.update(zip(names, _parts(tensor.detach().cpu(), names)))
        if format == "huggingface":
            architecture = "BertModel" if encoder is self else type(self).__name__
            _write_json(path / CONFIG, encoder.config.to_huggingface(architecture))
            prefix = "" if encoder is self else "bert."
            inside = (*ENCODER, "pooler.")
            tensors = {prefix * name.startswith(inside) + name: tensor.clone() for name, tensor in tensors.items()}
            with written(path / WEIGHTS) as draft:
                try:
                    _safetensors().torch.save_file(tensors, draft, {"format": "pt"})
                except _safetensors().SafetensorError as error:
                    raise OSError(f"{path / WEIGHTS} cannot be written: {error}") from None
        else:
            _write_json(path / GOOGLE_CONFIG, encoder.config.to_google())
            tensors = {to_google(name): tensor.float() for name, tensor in tensors.items()}
            arrays = {name: _transposed(name, tensor).numpy() for name, tensor in tensors.items()}
            write_bundle(path / GOOGLE_WEIGHTS, arrays)


class HuggingFaceFolder:
    """Its tensors by their neutral names."""

    def __init__(self, path: Path):
        self.config, self._path = path / CONFIG, path / WEIGHTS
        library = _safetensors()
        try:
            self._file = library.safe_open(self._path, "pt")
        except library.SafetensorError as error:
            raise CheckpointError(f"{self._path} is damaged or no safetensors file: {error}") from None
        self.names = {from_huggingface(name): name for name in self._file.keys()}  # noqa: SIM118, no dict

    def spell(self, name: str) -> str:
        return self.names.get(name, name)

    def read(self, name: str) -> Tensor:
        return self._file.get_tensor(self.names[name])


class GoogleFolder:
    """Its tensors by their neutral names."""

    def __init__(self, path: Path, prefix: Path):
        self.config = path / GOOGLE_CONFIG
        self._bundle = _checked(TensorBundle, prefix)
        entries = self._bundle.entries
        self.names = {from_google(name): name for name in entries if not _is_trainings(name, entries)}

    def spell(self, name: str) -> str:
        return to_google(name)

    def read(self, name: str) -> Tensor:
        array = _checked(self._bundle.read, self.names[name])
        return _transposed(self.names[name], torch.tensor(array))


def _open(path: Path) -> HuggingFaceFolder | GoogleFolder:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder")
    if (path / CONFIG).exists() and (path / WEIGHTS).exists():
        return HuggingFaceFolder(path)
    found = [path / GOOGLE_WEIGHTS] if (path / f"{GOOGLE_WEIGHTS}.index").exists() else _prefixes(path)
    if (path / GOOGLE_CONFIG).exists() and len(found) == 1:
        return GoogleFolder(path, found[0])
    several = f", and {len(found)} checkpoints: {', '.join(p.name for p in found)}" if len(found) > 1 else ""
    raise FileNotFoundError(
        f"{path} must hold {CONFIG} and {WEIGHTS}, or {GOOGLE_CONFIG} and one TensorFlow checkpoint (*.index and its "
        f"data); it has {', '.join(sorted(p.name for p in path.iterdir())[:20]) or 'nothing'}{several}"
    )


def _is_trainings(name: str, entries: dict[str, Entry]) -> bool:
    """Whether a TensorFlow variable is the training's own: a slot of an optimizer, or a number that it keeps.

    A slot's name is a variable's, followed by more ("VARIABLE/Adam_1") and perhaps in a scope. Counters are single
    integers, and powers, rates and scales are single numbers outside the model's scopes. The object graph is a string.
    """
    parts, entry = name.split("/"), entries[name]
    inside = ("/".join(parts[first:last]) for last in range(len(parts)) for first in range(last))
    counter = entry.shape == () and (entry.dtype in INTEGERS or not name.startswith(("bert/", "cls/")))
    return entry.dtype == STRING or counter or parts[-1].startswith(POWERS) or any(part in entries for part in inside)


def _prefixes(path: Path) -> list[Path]:
    return [index.with_suffix("") for index in sorted(path.glob("*.index"))]


def _fitting(model: Checkpointed, source: HuggingFaceFolder | GoogleFolder, fresh_head: bool) -> dict[str, Tensor]:
    """The state for a model: all that it needs, in its shapes, or an error that names what is wrong."""
    for tied, name in TIED.items():
        if tied in source.names:
            source.names.setdefault(name, source.names[tied])
    state, used, missing, misshaped = {}, set(), [], []
    for ours, parameter in model.state_dict().items():
        names = neutral(ours)
        used.update(names)
        absent = [source.spell(name) for name in names if name not in source.names]
        is_head = not names[0].startswith((*ENCODER, "pooler."))
        may_lack = names[0].startswith("pooler.") or ".center." in ours
        if fresh_head and (is_head or absent and may_lack):
            continue
        missing += absent
        parts = {name: source.read(name) for name in names if name in source.names}
        for name, expected in zip(names, _parts(parameter, names)):
            part = parts.get(name, expected)
            if part.shape != expected.shape or not part.is_floating_point():
                was, wanted = f"{part.dtype} {tuple(part.shape)}", tuple(expected.shape)
                misshaped.append(f"{source.spell(name)}: {was}, not floats {wanted}")
        if not absent and not misshaped:
            state[ours] = (torch.cat([*parts.values()]) if len(names) > 1 else parts[names[0]]).float()

    skipped = (*HEADS, "embeddings.position_ids")
    extra = [own for name, own in source.names.items() if name not in used and not name.startswith(skipped)]
    untied = []
    if "word_bias" in state:
        pairs = ((tied, name) for tied, name in TIED.items() if tied in source.names and name in source.names)
        untied = [f"{tied}, not {name}" for tied, name in pairs if not torch.equal(*map(source.read, (tied, name)))]
    found = {"missing": missing, "extra": extra, "misshaped": misshaped, "of a decoder of its own": untied}
    if any(found.values()):
        lines = (f"\n  {what}: {', '.join(names)}" for what, names in found.items() if names)
        raise CheckpointError(f"{source.config.parent} does not fit {type(model).__name__}:{''.join(lines)}")
    return state


def _parts(tensor: Tensor, names: list[str]) -> tuple[Tensor, ...]:
    """Query, key and value of a tensor of all three, or else the tensor."""
    return tensor.chunk(len(names)) if len(names) > 1 else (tensor,)


def _transposed(name: str, tensor: Tensor) -> Tensor:
    return tensor.T.contiguous() if name.endswith("/kernel") else tensor


def _checked(function, *args):
    try:
        return function(*args)
    except BundleError as error:
        raise CheckpointError(str(error)) from None


def _write_json(path: Path, content: dict) -> None:
    with written(path) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("checkpoints need safetensors: pip install 'attnkern[models]'") from None
    return safetensors
