"""BERT's WordPiece tokens (Devlin et al. 2018), by Hugging Face's `tokenizers`."""

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attnkern.atomic import written
from attnkern.nn.bert_config import BertConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPiece:
    """Texts to the token ids of a vocabulary. Chinese characters, and those like them, are words of their own.

    Args:
        vocabulary: the tokens, in the order of their ids; "##" begins one that continues a word.
        lower_case: whether letters become lower case and lose their accents; None: if no token of the vocabulary has a
            capital letter.
        max_length: tokens of a text or pair at most, [CLS] and [SEP] included.

    Attributes:
        tokenizer: the `tokenizers.Tokenizer` that does the work; it neither cuts nor pads.

    Raises:
        ValueError: the vocabulary lacks a special token, or has one twice.
        ImportError: tokenizers is not installed.
    """

    def __init__(self, vocabulary: Sequence[str], lower_case: bool | None = None, max_length: int = 512):
        library = _tokenizers()
        ids = {token: number for number, token in enumerate(vocabulary)}
        if absent := [token for token in SPECIAL if token not in ids]:
            raise ValueError(f"vocabulary must hold {', '.join(SPECIAL)}, lacks {', '.join(absent)}")
        if len(ids) != len(vocabulary):
            raise ValueError(f"vocabulary must hold every token once, got {len(vocabulary) - len(ids)} twice")
        if lower_case is None:
            lower_case = not any(re.search("[A-Z]", token) for token in ids if not re.fullmatch(r"\[.*\]", token))
        tokenizer = library.Tokenizer(library.models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lower_case)
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = library.processors.BertProcessing(
            *(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        )
        tokenizer.decoder = library.decoders.WordPiece()
        tokenizer.add_special_tokens(list(SPECIAL))
        self._take(tokenizer, max_length)

    @classmethod
    def train(
        cls, texts: Iterable[str], size: int = 8000, lower_case: bool = True, max_length: int = 512
    ) -> "WordPiece":
        """A vocabulary of at most `size` tokens learned from texts, for a model that starts from nothing.

        Save it: the library breaks ties by chance, and the next one may differ.
        """
        letters = cls(SPECIAL, lower_case, max_length).tokenizer
        trainer = _tokenizers().trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
        )
        letters.train_from_iterator(texts, trainer)
        ids = letters.get_vocab()
        return cls(sorted(ids, key=ids.get), lower_case, max_length)

    def _take(self, tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.padding = tokenizer.token_to_id("[PAD]")

    @classmethod
    def from_folder(cls, path: str | Path, lower_case: bool | None = None) -> "WordPiece":
        """Reads `tokenizer.json`, or `vocab.txt`; `max_length` is the model's, where its config is there.

        Args:
            lower_case: for `vocab.txt`; None: as `tokenizer_config.json` says, else as the vocabulary looks.

        Raises:
            FileNotFoundError: the folder has neither.
            ValueError: the model beside it has fewer words, or a file is malformed.
        """
        path = Path(path)
        vocabulary, whole = path / "vocab.txt", path / "tokenizer.json"
        configs = [path / name for name in ("config.json", "bert_config.json") if (path / name).exists()]
        config = BertConfig.from_json(configs[0]) if configs else None
        max_length = config.max_position_embeddings if config else 512
        if whole.exists() and lower_case is None:
            self = cls.__new__(cls)
            try:
                tokenizer = _tokenizers().Tokenizer.from_file(str(whole))
            except Exception as error:  # the library has no class of its own for it
                raise ValueError(f"{whole} is no tokenizer: {error}") from None
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self._take(tokenizer, max_length)
        elif vocabulary.exists():
            if lower_case is None and (said := path / "tokenizer_config.json").exists():
                lower_case = json.loads(said.read_text(encoding="utf-8")).get("do_lower_case")
            try:
                self = cls(vocabulary.read_text(encoding="utf-8").split("\n")[:-1], lower_case, max_length)
            except ValueError as error:
                raise ValueError(f"{vocabulary}: {error}") from None
        else:
            raise FileNotFoundError(f"{path} must hold tokenizer.json or vocab.txt")
        words = self.tokenizer.get_vocab_size()
        if config and words > config.vocab_size:
            raise ValueError(f"{path} has a tokenizer of {words} words, and a model of {config.vocab_size}")
        return self

    def save_folder(self, path: str | Path) -> None:
        """Writes `tokenizer.json` and `vocab.txt`; each appears whole or not at all."""
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
        self.tokenizer.enable_truncation(max_length)
        try:
            cut = self.tokenizer.encode_batch([inputs[number] for number in long], is_pretokenized=of_words)
        finally:
            self.tokenizer.no_truncation()
        for number, encoding in zip(long, cut):
            encodings[number] = encoding
        return encodings

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


def _tokenizers():
    try:
        import tokenizers
    except ImportError:
        raise ImportError("WordPiece needs tokenizers: pip install 'attnkern[models]'") from None
    return tokenizers
