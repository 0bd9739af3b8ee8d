"""BERT's WordPiece tokens (Devlin et al. 2018), by Hugging Face's `tokenizers`."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import Tensor

from attnkern.atomic import written
from attnkern.nn.bert_config import BertConfig
from attnkern.nn.tokenizer_config import SPECIAL, TokenizerConfig


class WordPiece:
    """Texts to the token ids of a vocabulary. Options' names and meanings are `transformers.BertTokenizer`'s.

    Args:
        vocabulary: the tokens, in the order of their ids; "##" begins one that continues a word.
        lower_case: whether letters become lower case; None: if no token of the vocabulary has a capital letter, of
            whatever script.
        max_length: tokens of a text or pair at most, [CLS] and [SEP] included.
        strip_accents: whether letters lose their accents; None: as `lower_case`.
        tokenize_chinese_chars: whether Chinese characters, and those like them, are words of their own.
        special: other names of `pad_token`, `unk_token`, `cls_token`, `sep_token` and `mask_token`.

    Attributes:
        tokenizer: the `tokenizers.Tokenizer` that does the work; it neither cuts nor pads, and nothing changes it.
        special: the special tokens, by those names.
        padding: the id of the one that fills rows up.

    Raises:
        ValueError: the vocabulary lacks a special token, or has one twice.
        TypeError: `special` has another name.
        ImportError: tokenizers is not installed.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        lower_case: bool | None = None,
        max_length: int = 512,
        *,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        **special: str,
    ):
        library = _tokenizers()
        if unknown := special.keys() - SPECIAL.keys():
            raise TypeError(f"special must be of {', '.join(SPECIAL)}, got {', '.join(sorted(unknown))}")
        special = SPECIAL | special
        ids = {token: number for number, token in enumerate(vocabulary)}
        if absent := [token for token in special.values() if token not in ids]:
            raise ValueError(f"vocabulary must hold {', '.join(special.values())}, lacks {', '.join(absent)}")
        if len(ids) != len(vocabulary):
            raise ValueError(f"vocabulary must hold every token once, got {len(vocabulary) - len(ids)} twice")
        if lower_case is None:
            words = (token for token in ids if not re.fullmatch(r"\[.*\]|<.*>", token))  # else names, such as [CLS]
            lower_case = all(word == word.lower() for word in words if word not in special.values())
        tokenizer = library.Tokenizer(library.models.WordPiece(ids, unk_token=special["unk_token"]))
        tokenizer.normalizer = library.normalizers.BertNormalizer(
            lowercase=lower_case, strip_accents=strip_accents, handle_chinese_chars=tokenize_chinese_chars
        )
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        ends = ((special[name], ids[special[name]]) for name in ("sep_token", "cls_token"))
        tokenizer.post_processor = library.processors.BertProcessing(*ends)
        tokenizer.decoder = library.decoders.WordPiece()
        tokenizer.add_special_tokens(list(special.values()))
        self._take(tokenizer, max_length, special)

    @classmethod
    def train(
        cls, texts: Iterable[str], size: int = 8000, lower_case: bool = True, max_length: int = 512
    ) -> "WordPiece":
        """A vocabulary learned from texts, for a model that starts from nothing. The same texts give the same one.

        Args:
            size: tokens at most; but every letter of the texts gets its own.
        """
        library, letters = _tokenizers(), cls(list(SPECIAL.values()), lower_case, max_length).tokenizer
        split, normal = letters.pre_tokenizer.pre_tokenize_str, letters.normalizer.normalize_str
        counts = Counter(word for text in texts for word, _ in split(normal(text)))
        # the library numbers these by chance, and breaks ties by their numbers: as special tokens they come in order
        inner = sorted({f"##{letter}" for word in counts for letter in word[1:]})
        trainer = library.trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=[*SPECIAL.values(), *inner], show_progress=False
        )
        letters.train_from_iterator(chain.from_iterable(repeat(*entry) for entry in counts.items()), trainer)
        ids = letters.get_vocab()
        return cls(sorted(ids, key=ids.get), lower_case, max_length)

    def _take(self, tokenizer, max_length: int, special: dict[str, str]) -> None:
        self.tokenizer, self.max_length, self.special = tokenizer, max_length, special
        self.padding = tokenizer.token_to_id(special["pad_token"])

    @classmethod
    def from_folder(cls, path: str | Path, lower_case: bool | None = None) -> "WordPiece":
        """Reads `tokenizer.json`, or `vocab.txt`; `tokenizer_config.json` and what is beside it are obeyed.

        `max_length` is the model's, where its config is there, or the tokenizer's, if that is less.

        Args:
            lower_case: None: as `tokenizer_config.json` says, else `tokenizer.json`, else as the vocabulary looks.

        Raises:
            FileNotFoundError: the folder has neither.
            ValueError: the model beside it has fewer words, a file is malformed, or of another kind of tokenizer.
        """
        path = Path(path)
        vocabulary, whole = path / "vocab.txt", path / "tokenizer.json"
        if not (vocabulary.exists() or whole.exists()):
            raise FileNotFoundError(f"{path} must hold tokenizer.json or vocab.txt")
        configs = [path / name for name in ("config.json", "bert_config.json") if (path / name).exists()]
        config = BertConfig.from_json(configs[0]) if configs else None
        said = TokenizerConfig.from_folder(path, whole.exists())
        lengths = (config and config.max_position_embeddings, said.max_length)
        max_length = min(filter(None, lengths), default=512)
        options = said.normalizer | ({} if lower_case is None else {"do_lower_case": lower_case})
        if whole.exists():
            self = cls.__new__(cls)
            self._take(_whole(whole, options), max_length, SPECIAL | said.special)
            if self.padding is None:
                raise ValueError(f"{whole} must hold {self.special['pad_token']}, its pad_token")
        else:
            tokens = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            known = {*tokens, *said.special.values()}  # which a vocabulary must hold
            new = (token["content"] for token in said.added if "id" in token or token["content"] not in known)
            tokens += [token for token in dict.fromkeys(new) if token not in tokens]
            lower_case = options.pop("do_lower_case", None)
            try:
                self = cls(tokens, lower_case, max_length, **options, **said.special)
            except ValueError as error:
                raise ValueError(f"{vocabulary}: {error}") from None
        self._add(said.added, path)
        words = self.tokenizer.get_vocab_size()
        if config and words > config.vocab_size:
            raise ValueError(f"{path} has a tokenizer of {words} words, and a model of {config.vocab_size}")
        return self

    def _add(self, tokens: list[dict], path: Path) -> None:
        for token in tokens:
            flags = {name: value for name, value in token.items() if name not in ("id", "special")}
            add = self.tokenizer.add_special_tokens if token["special"] else self.tokenizer.add_tokens
            add([_tokenizers().AddedToken(**flags)])
            number = self.tokenizer.token_to_id(token["content"])
            if token.get("id", number) != number:
                raise ValueError(
                    f"{path}: the added token {token['content']} must be number {number}, got {token['id']}"
                )

    def save_folder(self, path: str | Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and `vocab.txt`; each appears whole or not at all."""
        said = {"tokenizer_class": "BertTokenizer", "model_max_length": self.max_length, **self.special}
        if isinstance(normal := self.tokenizer.normalizer, _tokenizers().normalizers.BertNormalizer):
            said |= {"do_lower_case": normal.lowercase, "strip_accents": normal.strip_accents}
            said |= {"tokenize_chinese_chars": normal.handle_chinese_chars}
        with written(Path(path) / "tokenizer_config.json") as draft:
            draft.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with written(Path(path) / "tokenizer.json") as draft:
            self.tokenizer.save(str(draft))
        ids = self.tokenizer.get_vocab()
        with written(Path(path) / "vocab.txt") as draft:
            draft.write_text("".join(f"{token}\n" for token in sorted(ids, key=ids.get)), encoding="utf-8")

    def __call__(self, texts: Sequence, pairs: Sequence | None = None, **options) -> dict[str, Tensor]:
        """`batch(encode(...))`: what a model takes, `model(**wordpiece(texts))`."""
        return self.batch(self.encode(texts, pairs, **options))

    def encode(
        self, texts: Sequence, pairs: Sequence | None = None, *, max_length: int | None = None, truncate: bool = True
    ) -> list:
        """An encoding for each text, or pair of texts: `ids`, `type_ids`, `offsets`, `word_ids`, ...

        Args:
            texts: strings, or lists of words.
            pairs: the second texts, as many; None where there is none.
            max_length: fewer tokens than the model takes.
            truncate: False refuses what is too long. Else it is cut, a pair where it is longer, with a warning.

        Raises:
            ValueError: a text is too long, max_length is none that the model takes, or the numbers differ.
        """
        max_length = self.max_length if max_length is None else max_length
        if not 3 <= max_length <= self.max_length:
            raise ValueError(f"max_length must be 3 to {self.max_length}, got {max_length}")
        if isinstance(texts, str) or isinstance(pairs, str):
            raise TypeError("texts must be a list of them, got one str")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"pairs must be as many as texts, {len(texts)}, got {len(pairs)}")
        pairs = [None] * len(texts) if pairs is None else pairs
        inputs = [text if pair is None else (text, pair) for text, pair in zip(texts, pairs)]
        of_words = len(texts) > 0 and not isinstance(texts[0], str)
        encodings = self.tokenizer.encode_batch(inputs, is_pretokenized=of_words)
        long = [number for number, encoding in enumerate(encodings) if len(encoding) > max_length]
        if not long:
            return encodings
        if not truncate:
            length = len(encodings[long[0]])
            raise ValueError(f"text {long[0]} must have at most {max_length} tokens, got {length}")
        warnings.warn(f"{len(long)} of {len(encodings)} texts are cut to {max_length} tokens", stacklevel=2)
        for number in long:
            encodings[number] = self._cut(texts[number], pairs[number], max_length, of_words)
        return encodings

    def _cut(self, text, pair, max_length: int, of_words: bool):
        """An encoding of `max_length` tokens. The library cuts by a setting that all threads would share."""
        parts = [
            self.tokenizer.encode(part, is_pretokenized=of_words, add_special_tokens=False)
            for part in (text, pair)
            if part is not None
        ]
        room = max_length - self.tokenizer.num_special_tokens_to_add(len(parts) == 2)
        first, second = len(parts[0]), len(parts[-1])
        short = min(first, second, room // 2)  # what is longer is cut, to half of the room at most
        lengths = [room] if len(parts) == 1 else [short, room - short] if first <= second else [room - short, short]
        for part, length in zip(parts, lengths):
            part.truncate(length)
        return self.tokenizer.post_process(*parts)

    def batch(self, encodings: list) -> dict[str, Tensor]:
        """Padded to the longest: input_ids, attention_mask and token_type_ids, int64 `(B, L)`."""

        def padded(rows: list[list[int]], fill: int) -> Tensor:
            rows = [torch.tensor(row, dtype=torch.int64) for row in rows]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

        return {
            "input_ids": padded([encoding.ids for encoding in encodings], self.padding),
            "attention_mask": padded([encoding.attention_mask for encoding in encodings], 0),
            "token_type_ids": padded([encoding.type_ids for encoding in encodings], 0),
        }


def _whole(path: Path, options: dict):
    """The tokenizer of a file, its normalizer changed as the options say."""
    library = _tokenizers()
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own for it
        raise ValueError(f"{path} is no tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if options and isinstance(normal := tokenizer.normalizer, library.normalizers.BertNormalizer):
        tokenizer.normalizer = library.normalizers.BertNormalizer(
            clean_text=normal.clean_text,
            handle_chinese_chars=options.get("tokenize_chinese_chars", normal.handle_chinese_chars),
            strip_accents=options.get("strip_accents", normal.strip_accents),
            lowercase=options.get("do_lower_case", normal.lowercase),
        )
    return tokenizer


def _tokenizers():
    try:
        import tokenizers
    except ImportError:
        raise ImportError("WordPiece needs tokenizers: pip install 'attnkern[models]'") from None
    return tokenizers
