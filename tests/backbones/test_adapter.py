"""The adapter over a plain Vision Transformer against slow definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cssformer import CSSFormer, Predictor
from cssformer.backbones import ViTAdapter, add_lora, create_body, trunk
from cssformer.backbones.adapter import Extractor
from cssformer.inference import explain
from cssformer.model import segmentation_loss
from cssformer.utils.errors import UserError

SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 2}
PATCHES = {"vit_tiny_patch16_224": 16, "vit_small_patch14_reg4_dinov2": 14, "vit_small_patch8_224": 8}
NETWORKS = ["vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"]


def random_(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def at(feature: Tensor, y: float, x: float, outside_is_zero: bool) -> Tensor:
    """Pixel (y, x) of (C, H, W), bilinear."""
    total = torch.zeros(feature.shape[0])
    height, width = feature.shape[1:]
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = int(y // 1) + dy, int(x // 1) + dx
            share = (1 - abs(y - row)) * (1 - abs(x - column))
            if not outside_is_zero or (0 <= row < height and 0 <= column < width):
                total += share * feature[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
    return total


@pytest.mark.parametrize("name", PATCHES)
def test_places_and_resampled_patches_lie_where_the_strides_say(name: str) -> None:
    body, patch = create_body(name, pyramid="adapter", **SMALL), PATCHES[name]
    assert isinstance(body, ViTAdapter)
    height, width = 64, 96
    feature = torch.rand(1, 5, -(-height // (2 * patch)) * 2, -(-width // (2 * patch)) * 2)
    for stride in (4, 8, 16, 32):
        shape = (height // stride, width // stride)
        places = body.places(shape, stride, torch.device("cpu")).view(*shape, 2)
        found = body.resampled(feature, stride)
        for row in range(shape[0]):
            for column in range(shape[1]):
                # The cell's centre in pixels of the picture, and then in patches.
                y, x = ((cell + 0.5) * stride / patch - 0.5 for cell in (row, column))
                assert places[row, column].tolist() == pytest.approx([x, y], abs=1e-5)
                torch.testing.assert_close(found[0, :, row, column], at(feature[0], y, x, False), rtol=1e-4, atol=1e-5)


def test_an_extractor_is_its_definition() -> None:
    extractor = random_(Extractor(128))
    assert extractor.heads == 2
    shapes = [(3, 2), (1, 2)]
    tokens, feature = torch.rand(1, 8, 128), torch.rand(1, 128, 4, 5)
    places = torch.rand(8, 2) * 3
    with torch.no_grad():
        found = extractor(tokens, feature, places, shapes)[0]
        normed = extractor.norm(tokens[0])
        offsets = extractor.offsets(normed).view(8, 2, 4, 2)
        weights = extractor.weights(normed).view(8, 2, 4).softmax(-1)
        value = (extractor.value.weight @ feature[0].flatten(1)).unflatten(1, (4, 5)) + extractor.value.bias[
            :, None, None
        ]
        sampled = torch.zeros(8, 128)
        for n in range(8):
            for head in range(2):
                own = slice(64 * head, 64 * head + 64)
                for k in range(4):
                    x, y = (places[n] + offsets[n, head, k]).tolist()
                    sampled[n, own] += weights[n, head, k] * at(value[own], y, x, True)
        tokens = tokens[0] + extractor.output(sampled)
        hidden = extractor.wide(extractor.ffn_norm(tokens))
        first = extractor.mix(hidden[:6].T.view(1, 32, 3, 2)).flatten(2)[0].T
        second = extractor.mix(hidden[6:].T.view(1, 32, 1, 2)).flatten(2)[0].T
        mixed = torch.cat([first, second])
        expected = tokens + extractor.narrow(mixed * torch.special.ndtr(mixed))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> CSSFormer:
    torch.manual_seed(0)
    arguments = {**SMALL, "pyramid": "adapter"}
    return CSSFormer(request.param, 3, channels=32, heads=4, points=2, dropout=0.0, backbone_args=arguments)


def test_the_whole_network_learns_at_odd_sizes(model: CSSFormer) -> None:
    images = torch.rand(2, 3, 2, 3).repeat_interleave(34, 2).repeat_interleave(34, 3)[:, :, :67, :101]
    labels = images.argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = segmentation_loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert not [name for name, value in model.named_parameters() if value.grad is None]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("model", NETWORKS[1:], indirect=True)
def test_it_compiles_exports_saves_and_loads(model: CSSFormer, tmp_path: Path) -> None:
    images = torch.rand(1, 3, 64, 96)
    model = random_(model)
    model.save_pretrained(tmp_path)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(CSSFormer.from_pretrained(tmp_path)(images), expected)
        tolerance = {"rtol": 1e-3, "atol": 1e-3 * expected.abs().max().item()}
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected, **tolerance
        )
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected, **tolerance)
        found = model.double()(images.double())
        torch.testing.assert_close(found.float(), expected, **tolerance)


def test_explain_tells_of_the_decoder_alone(model: CSSFormer) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    maps = explain(Predictor(model.eval(), "cpu"), pixels, 30, 20).maps
    assert [part.module for part in maps] == ["MSFE", "CSF"]
    assert all(part.weights.shape == (4, 4, 4, 2) for part in maps)


def test_the_vit_alone_is_pretrained(model: CSSFormer) -> None:
    pretrained = trunk(model.backbone)
    add_lora(pretrained, 2)
    learning = {name for name, value in model.backbone.named_parameters() if value.requires_grad}
    own = {name for name in learning if ".vit." not in name}
    assert {name.split(".")[1] for name in own} == {"prior", "level_embed", "norms", "extractors", "finest"}
    assert all("parametrizations" in name for name in learning - own)


@pytest.mark.parametrize(
    ("name", "pyramid", "message"),
    [("vit_tiny_patch16_224", "fpn", "simple or adapter, not 'fpn'"), ("resnet10t", "adapter", "scales of its own")],
)
def test_other_pyramids_are_refused(name: str, pyramid: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_body(name, pyramid=pyramid)
