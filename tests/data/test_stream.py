"""The stream that training reads: a function of seed and item alone."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cssformer.data import IGNORE, SyntheticScenes
from cssformer.data.stream import TrainingStream, ValidationSet
from cssformer.data.transforms import Augment


def stream(seed: int = 0, length: int = 12) -> TrainingStream:
    return TrainingStream(SyntheticScenes(5, (40, 48)), Augment((32, 32)), seed, length)


def test_items_do_not_depend_on_order_or_length():
    forward = [stream()[index] for index in range(12)]
    long = stream(length=100)
    for index in (11, 3, 7, 0):
        assert torch.equal(long[index]["image"], forward[index]["image"])
        assert torch.equal(long[index]["label"], forward[index]["label"])


def test_workers_make_the_same_items():
    loader = DataLoader(stream(), batch_size=3, num_workers=2, multiprocessing_context="spawn")
    got = list(loader)
    for batch, first in zip(got, range(0, 12, 3), strict=True):
        for offset in range(3):
            item = stream()[first + offset]
            assert torch.equal(batch["image"][offset], item["image"])
            assert torch.equal(batch["label"][offset], item["label"])


def test_item_form():
    item = stream()[0]
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.uint8
    assert item["label"].shape == (32, 32) and item["label"].dtype == torch.int16


def test_each_epoch_shows_every_picture_once_in_its_own_order():
    class Spy(SyntheticScenes):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    seen: list[int] = []
    items = TrainingStream(Spy(8, (32, 32)), Augment((32, 32)), seed=1, length=24)
    for index in range(24):
        items[index]
    epochs = [tuple(seen[start : start + 8]) for start in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_seeds_differ_and_the_end_is_the_end():
    assert not torch.equal(stream(0)[0]["image"], stream(1)[0]["image"])
    with pytest.raises(IndexError):
        stream()[12]


def test_validation_set_is_unchanged():
    scenes = SyntheticScenes(3, (40, 48))
    items = ValidationSet(scenes)
    assert len(items) == 3
    item, sample = items[2], scenes[2]
    assert item["name"] == sample.name
    assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), sample.image)
    assert np.array_equal(item["label"].numpy(), sample.label) and item["label"].dtype == torch.int16
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE
