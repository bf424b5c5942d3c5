"""Each module of the paper against a slow, literal reading of its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cssformer.model.cia import POOLED_SIZES, ChannelInformationAugmentation
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.head import SegmentationHead
from cssformer.model.loss import SegmentationOutput, segmentation_loss
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.model.positions import flatten, reference_points, sine_positions, unflatten

CHANNELS, HEADS, POINTS = 16, 2, 3
SHAPES = ((6, 4), (3, 2))


def bilinear_at(feature_HWD: Tensor, x: float, y: float) -> Tensor:
    """Value of the map at the pixel position (x, y), zero outside: the textbook formula, one corner at a time."""
    height, width, depth = feature_HWD.shape
    value = torch.zeros(depth)
    for corner_y in (math.floor(y), math.floor(y) + 1):
        for corner_x in (math.floor(x), math.floor(x) + 1):
            if 0 <= corner_y < height and 0 <= corner_x < width:
                share = (1 - abs(x - corner_x)) * (1 - abs(y - corner_y))
                value = value + share * feature_HWD[corner_y, corner_x]
    return value


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Zero-initialised layers would hide mistakes."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 12), (33, 2)])
def test_cia_equals_the_formula_written_with_convolutions(size: tuple[int, int], differentiable: bool) -> None:
    module = randomised(ChannelInformationAugmentation(CHANNELS))
    feature = torch.randn(2, CHANNELS, *size)

    contexts = [feature]
    for pooled, reduce in zip(POOLED_SIZES, module.reduce, strict=True):
        context = F.conv2d(F.adaptive_avg_pool2d(feature, pooled), reduce.weight[..., None, None], reduce.bias)
        contexts.append(F.interpolate(context, size, mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(contexts, dim=1), module.fuse.weight[..., None, None], module.fuse.bias)
    alpha = fused.mean(dim=(2, 3))
    weight = torch.sigmoid(module.gate[2](torch.relu(module.gate[0](alpha))))
    expected = feature + weight[..., None, None] * fused

    with torch.set_grad_enabled(differentiable):
        found = module(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
@settings(max_examples=30)
def test_unflatten_undoes_flatten(shapes: list[tuple[int, int]]) -> None:
    maps = [torch.randn(2, *shape, 3) for shape in shapes]
    tokens, found = flatten(maps)
    assert found == tuple(shapes)
    for before, after in zip(maps, unflatten(tokens, found), strict=True):
        assert torch.equal(before, after)


def test_reference_points_of_a_scale_on_itself_are_its_pixels() -> None:
    points_NL2 = reference_points(((4, 6), (2, 3)), torch.device("cpu"))
    own = torch.tensor([(x, y) for y in range(4) for x in range(6)], dtype=torch.float32)
    torch.testing.assert_close(points_NL2[:24, 0], own)
    # The first pixel of the coarse map covers the four first pixels of the fine one: its centre lies between them.
    torch.testing.assert_close(points_NL2[24, 0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(points_NL2[0, 1], torch.tensor([-0.25, -0.25]))


def test_sine_positions_tell_every_token_of_a_scale_apart() -> None:
    (positions,) = sine_positions(((16, 16),), 64, torch.device("cpu"))
    distances = torch.cdist(positions, positions) + torch.eye(256) * 1e9
    assert positions.shape == (256, 64)
    assert distances.min() > 0.1


def test_offsets_start_as_a_star_around_the_token_and_learn_from_content() -> None:
    module = MultiScaleFeatureEnhancement(CHANNELS, heads=4, points=POINTS, levels=2).offsets
    offsets = module(torch.randn(1, 5, CHANNELS))
    assert offsets.shape == (1, 5, 4, 2, POINTS, 2)
    torch.testing.assert_close(offsets[0, 0], offsets[0, 4])
    distance = offsets.norm(dim=-1)
    torch.testing.assert_close(distance[0, 0, 1, 0], torch.tensor([0.0, 1.0, 2.0]) * module.radius / POINTS)
    torch.testing.assert_close(offsets[0, 0].sum(dim=0), torch.zeros(2, POINTS, 2), atol=1e-5, rtol=0)
    offsets.square().sum().backward()
    assert module.weight.grad is not None and module.weight.grad.abs().sum() > 0


def test_msfe_equals_the_formula_written_with_loops() -> None:
    module = randomised(MultiScaleFeatureEnhancement(CHANNELS, HEADS, POINTS, levels=2))
    tokens, shapes = flatten([torch.randn(1, *shape, CHANNELS) for shape in SHAPES])
    reference = reference_points(shapes, tokens.device)
    places = torch.randn(tokens.shape[1:])

    normed = F.layer_norm(tokens, (CHANNELS,), module.norm.weight, module.norm.bias)
    offsets = module.offsets(normed + places)
    weights = module.weights(normed + places).view(1, -1, HEADS, 2 * POINTS).softmax(-1).view(1, -1, HEADS, 2, POINTS)
    maps = [m[0].view(*m.shape[1:3], HEADS, -1) for m in unflatten(module.value(normed), shapes)]
    gathered = torch.zeros_like(tokens).view(1, -1, HEADS, CHANNELS // HEADS)
    for n in range(tokens.shape[1]):
        for m in range(HEADS):
            for level, feature in enumerate(maps):
                for k in range(POINTS):
                    x, y = (reference[n, level] + offsets[0, n, m, level, k]).tolist()
                    gathered[0, n, m] += weights[0, n, m, level, k] * bilinear_at(feature[:, :, m], x, y)
    expected = tokens + module.output(gathered.flatten(2))
    expand = module.feed_forward[1]
    hidden = torch.relu(F.linear(module.feed_forward[0](expected), expand.weight, expand.bias))
    expected = expected + module.feed_forward[3](hidden)

    torch.testing.assert_close(module(tokens, places, shapes, reference), expected, rtol=1e-4, atol=1e-4)


def test_csf_equals_the_formula_written_with_loops() -> None:
    module = randomised(CrossScaleFusion(CHANNELS, HEADS, POINTS, levels=2))
    queries, shapes = flatten([torch.randn(1, *shape, CHANNELS) for shape in SHAPES])
    enhanced = torch.randn_like(queries)
    reference = reference_points(shapes, queries.device)
    places = torch.randn(queries.shape[1:])

    normed = F.layer_norm(enhanced, (CHANNELS,), module.norm.weight, module.norm.bias)
    asking = F.layer_norm(queries, (CHANNELS,), module.query_norm.weight, module.query_norm.bias)
    query = module.query(asking + places).view(1, -1, HEADS, CHANNELS // HEADS)
    offsets = module.offsets(normed + places)
    keys = [m[0].view(*m.shape[1:3], HEADS, -1) for m in unflatten(module.key(normed + places), shapes)]
    values = [m[0].view(*m.shape[1:3], HEADS, -1) for m in unflatten(module.value(normed), shapes)]
    fused = torch.zeros_like(query)
    for n in range(queries.shape[1]):
        for m in range(HEADS):
            samples = [
                (level, *(reference[n, level] + offsets[0, n, m, level, k]).tolist())
                for level in range(2)
                for k in range(POINTS)
            ]
            key = torch.stack([bilinear_at(keys[level][:, :, m], x, y) for level, x, y in samples])
            value = torch.stack([bilinear_at(values[level][:, :, m], x, y) for level, x, y in samples])
            fused[0, n, m] = (key @ query[0, n, m] / math.sqrt(CHANNELS // HEADS)).softmax(0) @ value
    expected = enhanced + module.output(fused.flatten(2))
    expand = module.feed_forward[1]
    hidden = torch.relu(F.linear(module.feed_forward[0](expected), expand.weight, expand.bias))
    expected = expected + module.feed_forward[3](hidden)

    torch.testing.assert_close(module(queries, enhanced, places, shapes, reference), expected, rtol=1e-4, atol=1e-4)


def test_head_equals_concatenation_before_one_convolution() -> None:
    torch.manual_seed(0)
    head = SegmentationHead(CHANNELS, num_classes=5).eval()
    maps = [torch.randn(2, 24 // s, 16 // s, CHANNELS) for s in (1, 2, 4, 8)]

    grown = [F.interpolate(m.permute(0, 3, 1, 2), (24, 16), mode="bilinear") for m in maps]
    weight = torch.cat([fuse.weight for fuse in head.fuse], dim=1)
    fused = F.conv2d(torch.cat(grown, dim=1), weight[..., None, None])
    normed = F.group_norm(fused, CHANNELS // 8, head.norm.weight, head.norm.bias)
    expected = F.conv2d(normed.relu(), head.classify.weight[..., None, None], head.classify.bias)

    torch.testing.assert_close(head(maps).permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)


def test_head_starts_as_one_convolution_after_he() -> None:
    torch.manual_seed(0)
    channels = 128
    weight = torch.cat([fuse.weight for fuse in SegmentationHead(channels, num_classes=5).fuse], dim=1).detach()
    expected = torch.nn.init.kaiming_uniform_(torch.empty(channels, 4 * channels), nonlinearity="relu")
    assert weight.abs().max() == pytest.approx(expected.abs().max().item(), rel=1e-3)
    assert weight.std() == pytest.approx(expected.std().item(), rel=0.02)


def test_loss_is_the_weighted_sum_over_pixels_not_ignored() -> None:
    torch.manual_seed(0)
    output = SegmentationOutput(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32))
    labels = torch.randint(0, 3, (2, 32, 32))
    labels[:, :7] = -100
    expected = 0.0
    for logits, weight in zip(output, (1.0, 0.4), strict=True):
        picked = logits.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        expected += weight * -picked[labels >= 0].mean()
    torch.testing.assert_close(segmentation_loss(output, labels), expected)
    torch.testing.assert_close(segmentation_loss(output.logits, labels), segmentation_loss(output, labels, 0.0))


def test_ignored_pixels_carry_no_gradient_and_all_ignored_gives_zero() -> None:
    logits = torch.randn(1, 3, 32, 32, requires_grad=True)
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = -100
    segmentation_loss(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[..., 16:].abs().max() == 0
    assert logits.grad[..., :16].abs().min() > 0
    assert segmentation_loss(logits, torch.full((1, 32, 32), -100)).item() == 0
