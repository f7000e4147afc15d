"""Real text that needs no download: the definitions of WordNet 3.0, each labelled with its lexicographer file."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from known_core.errors import KnownError

FOLDER = Path("/usr/share/wordnet")
LENGTH = 24  # tokens a text
VOCABULARY = 8_000  # token ids: padding, unknown, and the most frequent words
PADDING, UNKNOWN = 0, 1
CLASSES = (  # the numbered lexicographer files: lexnames(5WN)
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
_WORD = re.compile(r"[a-z]+|[0-9]+")
_EXAMPLES = re.compile(r';\s*"')


@dataclass(frozen=True)
class TextArrays:
    """Tokens (N, length) int64 padded with 0, labels (N,) int64, the name of each class, and how many token ids."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    vocabulary: int

    def of_classes(self, wanted: list[int]) -> "TextArrays":
        """The examples of some classes, renumbered from 0 in the order given."""
        keep = np.isin(self.labels, wanted)
        number = {label: index for index, label in enumerate(wanted)}
        labels = np.array([number[label] for label in self.labels[keep].tolist()], dtype=np.int64)
        return TextArrays(self.tokens[keep], labels, tuple(self.classes[label] for label in wanted), self.vocabulary)

    def take(self, indices: NDArray[np.int64]) -> "TextArrays":
        return TextArrays(self.tokens[indices], self.labels[indices], self.classes, self.vocabulary)


def load_text(name: str = "wordnet") -> TextArrays:
    """WordNet's definitions in the order of its files: adjectives, adverbs, nouns, verbs.

    Quoted examples are left out; a definition that several synsets share is kept once, with its first label. Tokens are
    numbered by frequency over all definitions, from 2; 1 is any other word.

    Args:
        name: "wordnet" (format: wndb(5WN)).

    Raises:
        KnownError: ``sample_missing`` with the command that installs it.
    """
    if name != "wordnet":
        raise KnownError("sample_missing", f"there is no sample text {name!r}", 'Use "wordnet".')
    if not FOLDER.is_dir():
        raise KnownError("sample_missing", f"WordNet is not in {FOLDER}", "apt-get install wordnet-base")
    label_of: dict[tuple[str, ...], int] = {}
    for part in ("adj", "adv", "noun", "verb"):
        for line in (FOLDER / f"data.{part}").read_text("utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            synset, gloss = line.split("|", 1)
            words = tuple(_WORD.findall(_EXAMPLES.split(gloss, maxsplit=1)[0].lower()))
            label_of.setdefault(words, int(synset.split(maxsplit=2)[1]))
    counts = Counter(word for words in label_of for word in words)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    number = {word: index for index, word in enumerate(frequent, start=2)}
    tokens = np.full((len(label_of), LENGTH), PADDING, dtype=np.int64)
    for row, words in zip(tokens, label_of, strict=True):
        row[: len(words)] = [number.get(word, UNKNOWN) for word in words[:LENGTH]]
    return TextArrays(tokens, np.array(list(label_of.values()), dtype=np.int64), CLASSES, VOCABULARY)
