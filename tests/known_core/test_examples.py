"""Examples in memory: what is read, and what augmentation changes."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from known_core.examples import Examples, image_examples, text_examples
from known_core.sample_data import ImageArrays
from known_core.sample_text import TextArrays


@pytest.fixture
def grey() -> ImageArrays:
    generator = np.random.default_rng(0)
    images = generator.integers(1, 256, size=(40, 8, 8), dtype=np.uint8)
    return ImageArrays(images, np.arange(40, dtype=np.int64) % 3, ("a", "b", "c"))


@pytest.fixture
def colour() -> ImageArrays:
    generator = np.random.default_rng(0)
    images = generator.integers(1, 256, size=(40, 8, 8, 3), dtype=np.uint8)
    return ImageArrays(images, np.arange(40, dtype=np.int64) % 3, ("a", "b", "c"))


def read(examples: Examples, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.stack([item["pixel_values"] for item in examples.__getitems__(list(range(len(examples))))])


def moves(original: Tensor, mirrored: bool = False) -> list[Tensor]:
    """Every image that augmentation may make of (C, 8, 8): shifted by up to two pixels, zero where nothing was."""
    padded = torch.nn.functional.pad(original.flip(2) if mirrored else original, (2, 2, 2, 2))
    return [padded[:, row : row + 8, column : column + 8] for row in range(5) for column in range(5)]


def test_images_are_read_from_minus_one_to_one(grey: ImageArrays, colour: ImageArrays) -> None:
    item = image_examples(grey, 8)[5]
    assert item["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(item["pixel_values"][0].numpy(), grey.images[5] / 127.5 - 1, atol=1e-6)
    assert int(item["labels"]) == 2
    item = image_examples(colour, 8)[5]
    np.testing.assert_allclose(item["pixel_values"].permute(1, 2, 0).numpy(), colour.images[5] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("size", [4, 21])
def test_images_are_resized(grey: ImageArrays, size: int) -> None:
    examples = image_examples(grey, size)
    assert examples[0]["pixel_values"].shape == (1, size, size)
    assert examples.inputs["pixel_values"].dtype == torch.uint8
    flat = ImageArrays(np.full((2, 8, 8), 100, dtype=np.uint8), np.zeros(2, dtype=np.int64), ("a",))
    assert (image_examples(flat, size).inputs["pixel_values"] == 100).all()


def test_augmented_grey_images_are_shifted_and_never_mirrored(grey: ImageArrays) -> None:
    plain, moved = read(image_examples(grey, 8)), read(image_examples(grey, 8, augment=True))
    assert moved.shape == plain.shape
    seen = set()
    for before, after in zip(plain, moved, strict=True):
        (which,) = [index for index, move in enumerate(moves(before)) if torch.equal(after, move)]
        seen.add(which)
    assert len(seen) > 10


def test_augmented_colour_images_are_mirrored_half_of_the_time(colour: ImageArrays) -> None:
    plain, moved = read(image_examples(colour, 8)), read(image_examples(colour, 8, augment=True))
    mirrored = 0
    for before, after in zip(plain, moved, strict=True):
        straight, turned = (any(torch.equal(after, move) for move in moves(before, flip)) for flip in (False, True))
        assert straight != turned
        mirrored += turned
    assert 10 <= mirrored <= 30


def test_augmentation_is_the_global_seed_s_and_keeps_labels(colour: ImageArrays) -> None:
    examples = image_examples(colour, 8, augment=True)
    assert torch.equal(read(examples, 1), read(examples, 1))
    assert not torch.equal(read(examples, 1), read(examples, 2))
    labels = [int(item["labels"]) for item in examples.__getitems__([4, 0, 39])]
    assert labels == [1, 0, 0]
    torch.manual_seed(0)
    again = examples[0]["pixel_values"], examples[0]["pixel_values"]
    assert not torch.equal(*again)  # each read is another draw


def test_batches_are_in_order_and_never_augmented(colour: ImageArrays) -> None:
    plain = read(image_examples(colour, 8))
    batches = list(image_examples(colour, 8, augment=True).batches(16))
    assert [len(batch["pixel_values"]) for batch in batches] == [16, 16, 8]
    assert all(batch.keys() == {"pixel_values"} for batch in batches)
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), plain)


def test_taking_keeps_order_labels_and_augmentation(colour: ImageArrays) -> None:
    examples = image_examples(colour, 8, augment=True)
    part = examples.take(np.array([7, 3]))
    assert (len(part), part.augment, part.mirror) == (2, True, True)
    assert torch.equal(part.inputs["pixel_values"], examples.inputs["pixel_values"][[7, 3]])
    assert part.labels.tolist() == [1, 0]
    assert not image_examples(colour, 8).take(np.array([0])).augment


def test_a_loader_reads_a_batch_at_once(grey: ImageArrays) -> None:
    examples = image_examples(grey, 8)
    first = next(iter(DataLoader(examples, batch_size=6)))
    assert first["pixel_values"].shape == (6, 1, 8, 8)
    assert first["labels"].tolist() == [0, 1, 2, 0, 1, 2]


def test_text_is_masked_where_it_is_padding() -> None:
    tokens = np.array([[5, 1, 0], [7, 0, 0]], dtype=np.int64)
    examples = text_examples(TextArrays(tokens, np.array([1, 0], dtype=np.int64), ("a", "b"), 8))
    item = examples[0]
    assert item["input_ids"].tolist() == [5, 1, 0]
    assert item["attention_mask"].tolist() == [1, 1, 0]
    assert int(item["labels"]) == 1
    assert [value.dtype for value in item.values()] == [torch.int64] * 3
    (batch,) = examples.batches(10)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert torch.equal(examples.take(np.array([1])).inputs["input_ids"], torch.tensor([[7, 0, 0]]))
