"""Word ids as in the field's released code: NLTK's `word_tokenize` on lower-cased captions, four special
tokens, and a minimum count.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.base import DataError

if TYPE_CHECKING:
    from torch import Tensor

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
MIN_COUNT = 4
"""Minimum number of occurrences of a word (released code of VSE++ and its successors)."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Vocabulary:
    """A mapping from words to ids.

    `<pad>` has id 0. A caption is encoded as `<start>`, its words (unknown ones as `<unk>`), and `<end>`.

    Args:
        ids: id of each word, with the special tokens.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)

    def __len__(self) -> int:
        return max(self.ids.values()) + 1

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int = MIN_COUNT) -> Vocabulary:
        """The special tokens, then all words with `min_count` or more occurrences, by first appearance."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        words = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL]
        return cls({word: i for i, word in enumerate((*SPECIAL, *words))})

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a `*_vocab.json` of the SCAN layout: `{"word2idx": {...}, "idx2word": {...}, "idx": n}`.

        Raises:
            DataError: the file has another form, a special token is missing, or `<pad>` is not alone at 0.
        """
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))["word2idx"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"vocabulary {path}: expected JSON with word2idx, found {type(error).__name__}: {error}"
            ) from None
        if not isinstance(ids, dict) or not ids or not all(type(i) is int and i >= 0 for i in ids.values()):
            raise DataError(f"vocabulary {path}: expected word2idx to map words to integers from 0")
        missing = [token for token in SPECIAL if token not in ids]
        if missing:
            raise DataError(
                f"vocabulary {path}: expected the special tokens {', '.join(SPECIAL)}, found no "
                f"{', '.join(missing)}"
            )
        if ids["<pad>"] != 0 or sum(i == 0 for i in ids.values()) > 1:
            raise DataError(f"vocabulary {path}: expected <pad> alone at 0, found it at {ids['<pad>']}")
        largest = 100 * len(ids) + 1000  # an embedding has a row for each id up to the largest
        if max(ids.values()) >= largest:
            raise DataError(
                f"vocabulary {path}: the id {max(ids.values())} is too large for {len(ids)} words (allowed: "
                f"below {largest})"
            )
        return cls(ids)

    def write(self, path: Path) -> None:
        """Write a file that `read` and the field's repositories can read."""
        content = {
            "word2idx": self.ids,
            "idx2word": {str(i): word for word, i in self.ids.items()},
            "idx": len(self),
        }
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Word ids of C captions, int64 [C, L], padded with 0 to the longest one."""
        import torch  # here, because building and checking a vocabulary does not need it

        start, end, unknown = (self.ids[token] for token in SPECIAL[1:])
        rows = [
            torch.tensor([start, *(self.ids.get(word, unknown) for word in tokenize(c)), end])
            for c in captions
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@lru_cache(maxsize=1_000_000)
def tokenize(caption: str) -> tuple[str, ...]:
    """The words of a caption: NLTK's `word_tokenize` on the lower-cased text.

    Sentences are split after `.`, `!` or `?` before a space, because NLTK's splitter needs a model that has
    to be downloaded. The two differ only for a period after an abbreviation inside a caption.
    """
    sentences = _SENTENCE_END.split(caption.lower().strip())
    return tuple(word for sentence in sentences for word in _tokenizer().tokenize(sentence))


@lru_cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # takes 1.5 s, and only region features need it

    return NLTKWordTokenizer()
