"""Word ids as the field has them: `word_tokenize` on lower-cased captions, four special tokens, a minimum
count.
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
MIN_COUNT = 4  # VSE++ and all that follow it, released code
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Vocabulary:
    """Words to ids. `<pad>` is 0; a caption is `<start>`, its words (`<unk>` where unknown), `<end>`."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)

    def __len__(self) -> int:
        return max(self.ids.values()) + 1

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int = MIN_COUNT) -> Vocabulary:
        """The special tokens, then every word that stands at least `min_count` times, in order of first
        appearance.
        """
        counts = Counter(word for caption in captions for word in tokenize(caption))
        words = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL]
        return cls({word: i for i, word in enumerate((*SPECIAL, *words))})

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """A `*_vocab.json` of the SCAN layout: `{"word2idx": {...}, "idx2word": {...}, "idx": n}`.

        Raises:
            DataError: not such a file, a special token is missing, or `<pad>` is not 0.
        """
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))["word2idx"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"vocabulary {path}: expected JSON with word2idx, found {type(error).__name__}: {error}"
            ) from None
        if not isinstance(ids, dict) or not ids or not all(type(i) is int and i >= 0 for i in ids.values()):
            raise DataError(f"vocabulary {path}: word2idx should map words to numbers from 0")
        missing = [token for token in SPECIAL if token not in ids]
        if missing:
            raise DataError(
                f"vocabulary {path}: expected the special tokens {', '.join(SPECIAL)}, found no "
                f"{', '.join(missing)}"
            )
        if ids["<pad>"] != 0 or sum(i == 0 for i in ids.values()) > 1:
            raise DataError(f"vocabulary {path}: expected <pad> alone at 0, found it at {ids['<pad>']}")
        if (
            max(ids.values()) >= 100 * len(ids) + 1000
        ):  # an embedding has a row for each number up to the largest
            raise DataError(
                f"vocabulary {path}: the number {max(ids.values())} is far beyond its {len(ids)} words"
            )
        return cls(ids)

    def write(self, path: Path) -> None:
        content = {
            "word2idx": self.ids,
            "idx2word": {str(i): word for word, i in self.ids.items()},
            "idx": len(self),
        }
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Word ids [C, L] of captions, zeros after the end of each."""
        import torch  # here, because building and checking a vocabulary does not need it

        start, end, unknown = (self.ids[token] for token in SPECIAL[1:])
        rows = [
            torch.tensor([start, *(self.ids.get(word, unknown) for word in tokenize(c)), end])
            for c in captions
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@lru_cache(maxsize=1_000_000)
def tokenize(caption: str) -> tuple[str, ...]:
    """NLTK's `word_tokenize` on the lower-cased caption.

    Sentences end at `.`, `!` or `?` before a space here: NLTK's own splitter needs a model that has to be
    downloaded. The two differ only in a period after an abbreviation inside a caption.
    """
    sentences = _SENTENCE_END.split(caption.lower().strip())
    return tuple(word for sentence in sentences for word in _tokenizer().tokenize(sentence))


@lru_cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # a second and a half, for region features only

    return NLTKWordTokenizer()
