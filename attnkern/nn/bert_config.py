"""What a BERT is: `BertConfig`, and how Hugging Face's and Google's JSON say it."""

import warnings
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch.nn.functional as F

from attnkern.nn.json_object import read_object

TANH_GELU = "gelu_new"
ACTIVATIONS = {
    "gelu": F.gelu,
    TANH_GELU: partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
# what a config may say that would make other outputs than ours
FIXED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True)
class BertConfig:
    """Sizes and rates of a BERT (Devlin et al. 2018, arXiv 1810.04805), by Hugging Face's names; defaults: BERT-base.

    Attributes:
        hidden_act: "gelu" (erf), "gelu_new" or "gelu_pytorch_tanh" (both tanh, Google's), or "relu".
        classifier_dropout: of the heads; None for `hidden_dropout_prob`.
        id2label: names of the labels of the sequence and token heads.

    Raises:
        ValueError: a size is no positive int, a rate is not in [0, 1], or the values do not go together.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = None
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})

    def __post_init__(self):
        for name, kind in ((f.name, f.type) for f in fields(self)):
            value = getattr(self, name)
            if kind is int and not (type(value) is int and value > 0):
                raise ValueError(f"{name} must be a positive int, got {value!r}")
            if "dropout" in name and value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"id2label must name the labels 0, 1, ..., got {self.id2label!r}")

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @classmethod
    def from_json(cls, path: str | Path, **overrides) -> "BertConfig":
        """Reads Hugging Face's `config.json` or Google's `bert_config.json`, whose "gelu" is the tanh form.

        Args:
            overrides: fields that shall be other than the file says.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no JSON object, or describes something else than this BERT.
        """
        path = Path(path)
        said = read_object(path)
        if others := [f"{name}={said[name]!r}" for name, ours in FIXED.items() if said.get(name, ours) != ours]:
            raise ValueError(f"{path} describes no BERT of ours: {', '.join(others)}")
        values = {f.name: said[f.name] for f in fields(cls) if f.name in said}
        if "id2label" in values:
            values["id2label"] = {int(number): label for number, label in values["id2label"].items()}
        if path.name == "bert_config.json" and values.get("hidden_act") == "gelu":
            values["hidden_act"] = TANH_GELU
        try:
            return cls(**values | overrides)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_huggingface(self, architecture: str) -> dict:
        """What `config.json` says."""
        label2id = {label: number for number, label in self.id2label.items()}
        return {"architectures": [architecture], **FIXED, **asdict(self), "label2id": label2id}

    def to_google(self) -> dict:
        """What `bert_config.json` says; warns where Google's code would compute something else."""
        if self.hidden_act == "gelu":
            warnings.warn("Google's gelu is the tanh form: outputs differ from erf's by about 1e-3", stacklevel=3)
        act = "gelu" if "gelu" in self.hidden_act else self.hidden_act
        ours_alone = ("layer_norm_eps", "classifier_dropout", "id2label")
        return {name: value for name, value in asdict(self).items() if name not in ours_alone} | {"hidden_act": act}
