"""The three decoders that no library offers, against their definitions."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from studies.baselines.fapn import AlignedPyramid, FeatureAlignment, FeatureSelection
from studies.baselines.segmenter import MaskTransformer
from studies.baselines.setr_mla import MultiLevelAggregation


def convolve(x: Tensor, block: torch.nn.Sequential) -> Tensor:
    """Convolution, BatchNorm with the statistics it holds, ReLU, by their formulas."""
    convolution, norm, _ = block
    x = F.conv2d(x, convolution.weight, padding=convolution.kernel_size[0] // 2)
    mean, var, weight, bias = (
        value[:, None, None] for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return torch.relu((x - mean) / torch.sqrt(var + norm.eps) * weight + bias)


def test_setr_mla_adds_from_the_deepest_map_on_and_refines_each_stream() -> None:
    torch.manual_seed(0)
    model = MultiLevelAggregation([4, 6, 8], 3, width=16).eval()
    for norm in (part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.running_mean)
    fine, middle, deep = (torch.randn(2, c, 16 // s, 8 // s) for c, s in ((4, 1), (6, 2), (8, 4)))
    twice = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    with torch.no_grad():
        third = convolve(deep, model.lateral[2])
        second = convolve(middle, model.lateral[1]) + twice(third)
        first = convolve(fine, model.lateral[0]) + twice(second)
        streams = []
        for index, total in enumerate((first, second, third)):
            stream = convolve(total, model.merge[index])
            for block in model.stream[index]:
                stream = convolve(stream, block)
            streams.append(F.interpolate(stream, (16, 8), mode="bilinear"))
        expected = F.conv2d(torch.cat(streams, 1), model.classify.weight, model.classify.bias)
        torch.testing.assert_close(model([fine, middle, deep]), expected)


def test_feature_selection_weighs_channels_by_the_whole_picture() -> None:
    torch.manual_seed(0)
    module, feature = FeatureSelection(5, 3), torch.randn(2, 5, 4, 6)
    weigh, select = (layer.weight[:, :, 0, 0].detach().numpy() for layer in (module.weigh, module.select))
    x = feature.numpy()
    weight = 1 / (1 + np.exp(-x.mean((2, 3)) @ weigh.T))
    expected = np.einsum("oc,bchw->bohw", select, x * (1 + weight[:, :, None, None]))
    np.testing.assert_allclose(module(feature).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_feature_alignment_samples_where_the_offsets_say() -> None:
    torch.manual_seed(0)
    module = FeatureAlignment(16)
    selected, coarse = torch.randn(1, 16, 8, 12), torch.randn(1, 16, 4, 6)
    up = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        # At the start every sample lies at its place and weighs one half.
        plain = F.conv2d(up, module.align.weight / 2, padding=1)
        torch.testing.assert_close(module(selected, coarse), torch.relu(plain) + selected)
        # Offsets of one row down and two columns right, (y, x) for every sample, at full weight.
        module.place.bias[: 18 * 8 : 2], module.place.bias[1 : 18 * 8 : 2] = 1, 2
        module.place.bias[18 * 8 :] = 50
        moved = F.conv2d(F.pad(up, (1, 3, 1, 2))[:, :, 1:, 2:], module.align.weight)
        found = module(selected, coarse) - selected
        torch.testing.assert_close(found, torch.relu(moved), rtol=1e-4, atol=1e-5)


def test_the_pyramid_aligns_each_map_with_the_one_before() -> None:
    torch.manual_seed(0)
    kept: list[list[Tensor]] = []

    class Head(torch.nn.Module):
        def forward(self, maps: list[Tensor]) -> Tensor:
            kept.append(maps)
            return maps[0]

    model = AlignedPyramid([4, 6, 8], Head(), width=16)
    for align in model.align:
        torch.nn.init.normal_(align.place.bias)
        torch.nn.init.normal_(align.place.weight, std=0.1)
    fine, middle, deep = (torch.randn(2, c, 16 // s, 8 // s) for c, s in ((4, 1), (6, 2), (8, 4)))
    with torch.no_grad():
        third = model.deepest(deep)
        second = model.align[1](model.select[1](middle), third)
        first = model.align[0](model.select[0](fine), second)
        model([fine, middle, deep])
        expected = [model.smooth[0](first), model.smooth[1](second), third]
    for found, one in zip(kept[0], expected, strict=True):
        torch.testing.assert_close(found, one)


def test_feature_alignment_compares_with_the_coarser_map_doubled() -> None:
    torch.manual_seed(0)
    module = FeatureAlignment(16)
    seen: list[Tensor] = []
    module.compare.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    selected, coarse = torch.randn(1, 16, 8, 12), torch.randn(1, 16, 4, 6)
    module(selected, coarse)
    up = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(seen[0], torch.cat([selected, 2 * up], dim=1))


def test_segmenters_layers_norm_before_each_branch() -> None:
    torch.manual_seed(0)
    layer = MaskTransformer(8, 5, width=64, depth=1).eval().layers[0]
    torch.nn.init.normal_(layer.norm1.weight)
    torch.nn.init.normal_(layer.norm2.bias)
    tokens = torch.randn(2, 6, 64)
    with torch.no_grad():
        normed = layer.norm1(tokens)
        attended = tokens + layer.self_attn(normed, normed, normed, need_weights=False)[0]
        expected = attended + layer.linear2(F.gelu(layer.linear1(layer.norm2(attended))))
        torch.testing.assert_close(layer(tokens), expected)


def test_segmenters_masks_are_cosines_of_patches_and_classes() -> None:
    torch.manual_seed(0)
    model = MaskTransformer(8, 5, width=64).eval()
    patches, classes = torch.randn(2, 6, 64), torch.randn(2, 5, 64)
    with torch.no_grad():
        found = model.likeness(patches, classes)
        one, other = model.patch(patches)[1, 4], model.mask(classes)[1, 2]
        assert torch.isclose(found[1, 4, 2], one @ other / (one.norm() * other.norm()), atol=1e-6)
        # The logits do not depend on the order in which classes stand among the tokens.
        feature = torch.randn(1, 8, 3, 4)
        before = model([feature])
        assert before.shape == (1, 5, 6, 8)
        order = torch.tensor([3, 1, 4, 0, 2])
        model.cls_emb.copy_(model.cls_emb[:, order])
        torch.testing.assert_close(model([feature]), before[:, order], rtol=1e-4, atol=1e-5)


def test_first_weights_are_those_that_the_authors_or_mmsegmentation_give() -> None:
    torch.manual_seed(0)
    select = FeatureSelection(300, 64).select.weight
    # Uniform within sqrt(3 / inputs).
    assert 0.098 < select.abs().max() <= 0.1 and 0.054 < select.std() < 0.061
    masks = MaskTransformer(320, 7, width=128)
    assert all(0.019 < layer.weight.std() < 0.021 for layer in (masks.project, masks.layers[1].linear1))
    assert 128**-0.5 * 0.95 < masks.mask.weight.std() < 128**-0.5 * 1.05
    assert all(not value.any() for name, value in masks.named_parameters() if name.endswith("bias"))
    streams = MultiLevelAggregation([24], 50, width=128)
    # He's, by the outputs: sqrt(2 / (9 · 128)).
    assert 0.040 < streams.merge[0][0].weight.std() < 0.0435
    assert 0.0095 < streams.classify.weight.std() < 0.0105
