"""A plain Vision Transformer's four scales against a slow definition."""

import pytest
import timm
import torch
from torch import Tensor, nn

from cssformer import CSSFormer
from cssformer.backbones import SimpleFeaturePyramid, create_body, trunk
from cssformer.model import segmentation_loss
from cssformer.utils.errors import UserError

SMALL = {"depth": 5, "embed_dim": 48, "num_heads": 2}
PLAIN = {
    "vit_tiny_patch16_224": 16,
    "vit_small_patch16_dinov3": 16,
    "vit_small_patch14_reg4_dinov2": 14,
    "eva02_tiny_patch14_224": 14,
    "vit_base_patch16_siglip_224": 16,
    "samvit_base_patch16_224": 16,
    "vit_small_patch8_224": 8,
    "vit_small_patch32_224": 32,
}


def pyramid(name: str) -> SimpleFeaturePyramid:
    torch.manual_seed(0)
    body = create_body(name, **SMALL).eval()
    assert isinstance(body, SimpleFeaturePyramid)
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.2)
    return body


def normed(feature: Tensor, norm: nn.Module) -> Tensor:
    """(H, W, C): each pixel by its own mean and deviation."""
    centred = feature - feature.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return unit * norm.weight + norm.bias


def twice(feature: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """(H, W, C): each pixel becomes 2x2, each of these by a matrix of its own."""
    rows = [[feature @ layer.weight[:, :, y, x] + layer.bias for x in range(2)] for y in range(2)]
    return torch.stack([torch.stack(row, 2) for row in rows], 1).flatten(2, 3).flatten(0, 1)


def scaled(feature: Tensor, scale: nn.Sequential) -> Tensor:
    feature = normed(feature, scale[0])
    for part in scale[1:]:
        if isinstance(part, nn.ConvTranspose2d):
            feature = twice(feature, part)
        elif isinstance(part, nn.MaxPool2d):
            feature = feature.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).amax((1, 3))
        elif isinstance(part, nn.GELU):
            feature = feature * torch.special.ndtr(feature)
        else:
            feature = normed(feature, part)
    return feature


def at(feature: Tensor, y: float, x: float) -> Tensor:
    """Pixel (y, x) of (H, W, C), bilinear; the edge's beyond the edge."""
    total = torch.zeros(feature.shape[-1])
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = int(y // 1) + dy, int(x // 1) + dx
            share = (1 - abs(y - row)) * (1 - abs(x - column))
            total += share * feature[min(max(row, 0), len(feature) - 1), min(max(column, 0), feature.shape[1] - 1)]
    return total


@pytest.mark.parametrize("name", PLAIN)
def test_every_cell_of_every_scale_lies_where_its_stride_says(name: str) -> None:
    body, patch = pyramid(name), PLAIN[name]
    height, width = 64, 96
    images = torch.rand(1, 3, height, width)
    seen: list[Tensor] = []
    for block in (1, 2, 3, 4):
        body.vit.model.blocks[block].register_forward_hook(lambda _, __, output: seen.append(output[0]))
    with torch.no_grad():
        maps = body(images)
    rows, columns = (-(-side // (2 * patch)) * 2 for side in (height, width))
    for tokens, scale, found, stride in zip(seen, body.scales, maps, (4, 8, 16, 32), strict=True):
        # Class and register tokens come first; SAM's are a map.
        grid = tokens.reshape(-1, tokens.shape[-1])[-rows * columns :].view(rows, columns, -1)
        with torch.no_grad():
            whole = scaled(grid, scale)
        own = patch * stride / 16
        assert found.shape[2:] == (height / stride, width / stride)
        for y in range(height // stride):
            for x in range(width // stride):
                expected = at(whole, (y + 0.5) * stride / own - 0.5, (x + 0.5) * stride / own - 0.5)
                torch.testing.assert_close(found[0, :, y, x], expected, rtol=1e-3, atol=1e-4)


def test_patches_of_14_see_the_picture_mirrored_to_a_multiple_of_28() -> None:
    body = pyramid("vit_small_patch14_reg4_dinov2")
    images, seen = torch.rand(1, 3, 64, 96), []
    body.vit.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    body(images)
    assert seen[0].shape == (1, 3, 84, 112)
    assert torch.equal(seen[0][:, :, :64, :96], images)
    assert torch.equal(seen[0][0, :, 64:, 5], images[0, :, 43:63, 5].flip(1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch14_dinov2"])
def test_positions_of_the_own_size_are_timms(name: str) -> None:
    size = {"vit_small_patch16_dinov3": 256, "vit_small_patch14_dinov2": 518}.get(name, 224)
    torch.manual_seed(0)
    theirs = timm.create_model(name, depth=4, embed_dim=48, num_heads=2, num_classes=0).eval()
    ours = create_body(name, depth=4, embed_dim=48, num_heads=2).eval()
    ours.vit.model.load_state_dict(theirs.state_dict(), strict=False)
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, indices=[0, 1, 2, 3], norm=False, intermediates_only=True)
        found = ours.vit(images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "blocks"), [(4, [0, 1, 2, 3]), (6, [1, 2, 4, 5]), (12, [2, 5, 8, 11])])
def test_the_blocks_are_equally_far_apart(depth: int, blocks: list[int]) -> None:
    body = create_body("vit_tiny_patch16_224", depth=depth, embed_dim=48, num_heads=2)
    assert body.vit.out_indices == blocks
    chosen = create_body("vit_tiny_patch16_224", depth=depth, embed_dim=48, num_heads=2, out_indices=[0, 1, 2, 3])
    assert list(chosen.vit.out_indices) == [0, 1, 2, 3] and len(chosen.vit.model.blocks) == 4


@pytest.mark.parametrize("arguments", [{"depth": 3}, {"out_indices": [1, 2]}])
def test_other_than_four_blocks_are_refused(arguments: dict) -> None:
    with pytest.raises(UserError, match="maps of 4 blocks of a ViT"):
        create_body("vit_tiny_patch16_224", embed_dim=48, num_heads=2, **arguments)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"])
def test_the_whole_network_learns_at_odd_sizes(name: str) -> None:
    torch.manual_seed(0)
    model = CSSFormer(name, 3, channels=32, heads=4, points=2, dropout=0.0, backbone_args=SMALL)
    images = torch.rand(2, 3, 2, 3).repeat_interleave(34, 2).repeat_interleave(34, 3)[:, :, :67, :101]
    labels = images.argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = segmentation_loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            still = [name for name, value in model.named_parameters() if value.grad is None]
            assert not still
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert set(trunk(model.backbone).parameters()) < set(model.backbone.parameters())


@pytest.mark.parametrize("name", ["hiera_tiny_224", "gcvit_xxtiny", "beit_base_patch16_224", "inception_v3"])
def test_networks_of_one_size_or_of_other_strides_say_so(name: str) -> None:
    arguments = {"depth": 4, "embed_dim": 48, "num_heads": 2} if "beit" in name else {}
    model = CSSFormer(name, 3, channels=32, heads=4, points=2, backbone_args=arguments).eval()
    with torch.no_grad(), pytest.raises(UserError, match="takes no pictures padded to 96x128"):
        model(torch.rand(1, 3, 70, 100))
