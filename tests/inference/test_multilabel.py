"""Prediction of several classes a pixel against the sigmoid of interpolated logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer import CSSFormer
from cssformer.data import IGNORE
from cssformer.inference import predict
from cssformer.inference.prediction import Prediction
from cssformer.model import Metadata
from cssformer.utils.errors import UserError

CLASSES = 3


@pytest.fixture(scope="module")
def model() -> CSSFormer:
    torch.manual_seed(0)
    model = CSSFormer("resnet10t", CLASSES, channels=16, heads=2, points=2).eval()
    model.metadata = Metadata(("a", "b", "c"), multilabel=True)
    return model


@settings(max_examples=6)
@given(
    st.sampled_from([(64, 96), (50, 75)]),
    st.booleans(),
    st.sampled_from([None, 0.3, 0.5, 0.9]),
    st.integers(1, CLASSES),
)
def test_is_the_mean_sigmoid_of_the_views(
    model: CSSFormer, size: tuple[int, int], flip: bool, threshold: float | None, top_k: int
) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    found = predict(model, image, flip=flip, threshold=threshold, confidence=True, entropy=True, top_k=top_k)
    views = []
    for mirrored in (False, True)[: 1 + flip]:
        with torch.inference_mode():
            logits = model.forward_logits((image.flip(2) if mirrored else image)[None])
            scores = F.interpolate(logits, scale_factor=4, mode="bilinear")[0, :, : size[0], : size[1]]
        views.append((scores.flip(2) if mirrored else scores).sigmoid())
    mean = torch.stack(views).mean(0).double()
    there = mean >= (threshold or 0.5)
    expected = sum(there[index].int() << index for index in range(CLASSES))
    near = ((mean - (threshold or 0.5)).abs() < 1e-4).any(0)
    assert (found.labels == expected)[~near].all() and near.float().mean() < 0.05
    certain = torch.where(there, mean, 1 - mean).amin(0)
    torch.testing.assert_close(found.confidence.double()[~near], certain[~near], atol=1e-4, rtol=0)
    entropy = (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum(0)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-3, rtol=0)
    if top_k > 1:
        ranked = mean.sort(0, descending=True).values[:top_k]
        torch.testing.assert_close(found.top_probabilities.double(), ranked, atol=1e-4, rtol=0)
    else:
        assert found.top_labels is None
    alone = predict(model, image, flip=flip, threshold=threshold)
    assert torch.equal(alone.labels, found.labels) and alone.confidence is None


def test_a_threshold_is_for_multilabel_networks_alone(model: CSSFormer) -> None:
    plain = CSSFormer("resnet10t", CLASSES, channels=16, heads=2, points=2)
    with pytest.raises(UserError, match="A threshold is for multi-label networks"):
        predict(plain, torch.zeros(3, 32, 32), threshold=0.5)
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        predict(model, torch.zeros(3, 32, 32), threshold=1.0)


def test_masks_shares_and_overlay_by_hand() -> None:
    labels = np.array([[0, 1, 2, 3], [3, 3, IGNORE, IGNORE]], np.int32)
    image = np.full((2, 4, 3), 100, np.uint8)
    prediction = Prediction(image, labels, None, ("a", "b"), ((200, 0, 0), (0, 100, 0)), multilabel=True)
    assert prediction.masks.tolist() == [
        [[False, True, False, True], [True, True, False, False]],
        [[False, False, True, True], [True, True, False, False]],
    ]
    assert prediction.shares == {"a": 4 / 6, "b": 4 / 6}
    assert prediction.name_at(0, 3) == "a and b" and prediction.name_at(0, 0) == prediction.name_at(1, 2) == "no class"
    wide = Prediction(
        image.repeat(4, 0).repeat(4, 1), labels.repeat(4, 0).repeat(4, 1), None, ("a", "b"),
        ((200, 0, 0), (0, 100, 0)), multilabel=True,
    )  # fmt: skip
    drawn = wide.overlay(0.5)
    assert drawn[2, 2].tolist() == drawn[6, 10].tolist() == [100, 100, 100]
    assert drawn[2, 6].tolist() == [150, 50, 50] and drawn[2, 10].tolist() == [50, 100, 50]
    assert drawn[2, 14].tolist() == [100, 75, 50]
    assert wide.overlay(0.5, clear=["a"])[2, 14].tolist() == [50, 100, 50]
