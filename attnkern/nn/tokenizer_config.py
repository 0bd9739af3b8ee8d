"""What `tokenizer_config.json`, and the files beside it, say of a BERT's tokenizer, by Hugging Face's names."""

from dataclasses import dataclass
from pathlib import Path

from attnkern.nn.json_object import read_object

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
NORMALIZER = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
# classes that read a vocab.txt as BERT's does
CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "PreTrainedTokenizer")


@dataclass(frozen=True)
class TokenizerConfig:
    """
    Attributes:
        normalizer: those of `NORMALIZER` that are said.
        special: those of `SPECIAL` that are said.
        added: the fields of a `tokenizers.AddedToken`, and `special` and perhaps `id`, in the order of their ids.
        max_length: tokens that a model takes, if that is said.
    """

    normalizer: dict[str, bool | None]
    special: dict[str, str]
    added: list[dict]
    max_length: int | None

    @classmethod
    def from_folder(cls, path: Path, whole: bool) -> "TokenizerConfig":
        """
        Args:
            whole: `tokenizer.json` is there; else `vocab.txt` is all, and what it cannot tell is refused.

        Raises:
            ValueError: a file is malformed, or is of another kind of tokenizer.
        """
        file = path / "tokenizer_config.json"
        said = _read(path / "special_tokens_map.json") | _read(file)
        kind = said.get("tokenizer_class") or _read(path / "config.json").get("tokenizer_class") or "BertTokenizer"
        japanese = said.get("word_tokenizer_type", "basic") != "basic" or "Japanese" in kind
        if japanese or not (whole or kind.removesuffix("Fast") in CLASSES):
            raise ValueError(f"{path} is of a {'Japanese tokenizer' if japanese else kind}, which WordPiece is not")
        never = set(said.get("never_split") or ()) - set(SPECIAL.values())
        for name, wrong in (("do_basic_tokenize", said.get("do_basic_tokenize") is False), ("never_split", never)):
            if wrong and not whole:
                raise ValueError(f"{file}: {name}={said[name]!r} is not supported beside a vocab.txt")

        normalizer = {name: said[name] for name in NORMALIZER if said.get(name) is not None}
        for name, value in normalizer.items():
            if not isinstance(value, bool):
                raise ValueError(f"{file}: {name} must be true, false or null, got {value!r}")
        if "strip_accents" in said:  # null says: as do_lower_case
            normalizer["strip_accents"] = said["strip_accents"]
        longest = said.get("model_max_length")
        if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float) or longest < 3):
            raise ValueError(f"{file}: model_max_length must be a number from 3 on, got {longest!r}")
        try:
            special = {name: _token(said[name])["content"] for name in SPECIAL if said.get(name) is not None}
            added = _added(said, _read(path / "added_tokens.json"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: a special or added token is malformed: {error}") from None
        return cls(normalizer, special, added, None if longest is None else int(min(longest, 2**31)))


def _added(said: dict, legacy: dict[str, int]) -> list[dict]:
    """Tokens that are found before a text is split."""
    numbered = {int(number): token for number, token in (said.get("added_tokens_decoder") or {}).items()}
    found = [_token(token) | {"id": number} for number, token in sorted(numbered.items())]
    for content, number in sorted(legacy.items(), key=lambda entry: entry[1]):
        if number not in numbered:
            found.append({"content": content, "special": False, "normalized": True, "id": number})
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = said.get(name) or []
        found += map(_token, more.values() if isinstance(more, dict) else more)
    return found + [_token(said[name]) for name in SPECIAL if said.get(name) is not None]


def _token(said: str | dict) -> dict:
    """Of a special one, unless it says else."""
    if isinstance(said, str):
        return {"content": said, "special": True, "normalized": False}
    flags = {name: bool(said[name]) for name in FLAGS if name in said}
    return {"content": said["content"], "special": bool(said.get("special", True)), "normalized": False} | flags


def _read(path: Path) -> dict:
    """Nothing, where there is no such file."""
    return read_object(path) if path.exists() else {}
