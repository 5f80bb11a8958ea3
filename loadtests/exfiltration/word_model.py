"""A small fixed language model: which word followed two words, one word or none in the project's own documents."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from loadtests.exfiltration.range_coder import TOTAL_MAX, Distribution

REPOSITORY = Path(__file__).resolve().parents[2]
CHOICES_MIN = 3  # a context with fewer successors says next to nothing
UNIGRAM_WORDS_MAX = 4096


class WordModel:
    """Word trigrams, falling back to bigrams and then to single words."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self.words = [word for word, _ in Counter(words).most_common(UNIGRAM_WORDS_MAX)]
        self._number = {word: number for number, word in enumerate(self.words)}
        numbers = [self._number[word] for word in words if word in self._number]
        self._after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for at, number in enumerate(numbers):
            for order in range(min(at, 2) + 1):
                self._after[tuple(numbers[at - order : at])][number] += 1

    def __call__(self, before: tuple[int, ...]) -> Distribution:
        """The distribution of the next word."""
        for order in (2, 1, 0):
            found = self._after.get(before[len(before) - order :] if order else ())
            if found is not None and (order == 0 or (len(before) >= order and len(found) >= CHOICES_MIN)):
                tokens = sorted(found)
                return tokens, [min(found[token], TOTAL_MAX // UNIGRAM_WORDS_MAX) for token in tokens]
        raise AssertionError("single words are always there")

    def text(self, tokens: Iterable[int]) -> str:
        """Words with spaces between."""
        return " ".join(self.words[token] for token in tokens)

    def tokens(self, text: str) -> list[int]:
        """The words again; unknown ones end it."""
        numbers = []
        for word in text.split():
            if word not in self._number:
                break
            numbers.append(self._number[word])
        return numbers


@cache
def documents_model() -> WordModel:
    """The model of this checkout's documents: both ends of a theft have them."""
    paths = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    return WordModel("\n".join(path.read_text() for path in paths))
