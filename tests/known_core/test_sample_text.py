"""WordNet's definitions as a text sample."""

from pathlib import Path

import numpy as np
import pytest

from known_core import sample_text
from known_core.errors import KnownError
from known_core.sample_text import CLASSES, FOLDER, LENGTH, VOCABULARY, TextArrays, load_text

needs_wordnet = pytest.mark.skipif(not FOLDER.is_dir(), reason="apt-get install wordnet-base")
LICENCE = "  1 This software and database is being provided to you | the LICENSEE\n"
SYNSETS = {
    "adj": '00001740 00 a 01 able 0 000 | having skill; "able to swim"; "she was able"  \n',
    "adv": "00001740 02 r 01 barely 0 000 | by a little; with skill  \n",
    "noun": "00001740 05 n 01 dog 0 000 | an animal with Skill, a skill  \n"
    "00002000 18 n 01 cook 0 000 | having skill  \n",
    "verb": f"00001740 38 v 01 go 0 000 01 + 02 00 | {'by ' * 30} \n",
}


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextArrays:
    for part, synsets in SYNSETS.items():
        (tmp_path / f"data.{part}").write_text(LICENCE + synsets)
    monkeypatch.setattr(sample_text, "FOLDER", tmp_path)
    return load_text()


def test_definitions_are_read_without_examples_and_once(few: TextArrays) -> None:
    # by frequency, then by name: by 31, skill 4, a 2, with 2, an, animal, having, little
    assert few.labels.tolist() == [CLASSES.index(name) for name in ("adj.all", "adv.all", "noun.animal", "verb.motion")]
    assert few.tokens.shape == (4, LENGTH)
    rows = [[token for token in row if token] for row in few.tokens.tolist()]
    assert rows[0] == [8, 3]
    assert rows[1] == [2, 4, 9, 5, 3]
    assert rows[2] == [6, 7, 5, 3, 4, 3]
    assert rows[3] == [2] * LENGTH


def test_words_beyond_the_vocabulary_are_unknown(
    few: TextArrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_text, "VOCABULARY", 4)
    capped = load_text()
    assert capped.vocabulary == 4
    assert capped.tokens[0, :3].tolist() == [1, 3, 0]


def test_some_classes_are_renumbered_in_the_order_given(few: TextArrays) -> None:
    part = few.of_classes([CLASSES.index("verb.motion"), CLASSES.index("adj.all")])
    assert part.classes == ("verb.motion", "adj.all")
    assert part.labels.tolist() == [1, 0]
    assert np.array_equal(part.tokens, few.tokens[[0, 3]])
    assert part.take(np.array([1])).labels.tolist() == [0]
    assert part.take(np.array([1])).vocabulary == few.vocabulary


@needs_wordnet
def test_wordnet() -> None:
    text = load_text()
    assert text.tokens.shape == (116_690, LENGTH)
    assert text.tokens.dtype == np.int64
    assert text.labels.dtype == np.int64
    assert text.classes == CLASSES
    assert text.vocabulary == VOCABULARY
    assert int(text.tokens.max()) == VOCABULARY - 1
    sizes = dict(zip(CLASSES, np.bincount(text.labels, minlength=45).tolist(), strict=True))
    assert (sizes["noun.animal"], sizes["verb.motion"], sizes["noun.Tops"]) == (7271, 1384, 51)
    assert text.tokens[:, 0].min() > 0
    assert (text.tokens == 1).sum() / (text.tokens > 0).sum() < 0.1


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KnownError, match=r"'cats' \(sample_missing\)"):
        load_text("cats")
    monkeypatch.setattr(sample_text, "FOLDER", tmp_path / "none")
    with pytest.raises(KnownError, match="apt-get install wordnet-base"):
        load_text()
