"""The adapter over a plain Vision Transformer against slow definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cssformer import CSSFormer, Predictor
from cssformer.backbones import ViTAdapter, add_lora, create_body, trunk
from cssformer.backbones.adapter import DeformableAttention, Extractor, Injector, Shapes, places
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
        on_patches = places(shape, stride, patch, torch.device("cpu")).view(*shape, 2)
        on_map = places((2, 3), patch, stride, torch.device("cpu")).view(2, 3, 2)
        # The last patch's centre in pixels of the picture, and then in cells.
        assert on_map[1, 2].tolist() == pytest.approx([patch * 2.5 / stride - 0.5, patch * 1.5 / stride - 0.5])
        found = body.resampled(feature, stride)
        for row in range(shape[0]):
            for column in range(shape[1]):
                y, x = ((cell + 0.5) * stride / patch - 0.5 for cell in (row, column))
                assert on_patches[row, column].tolist() == pytest.approx([x, y], abs=1e-5)
                torch.testing.assert_close(found[0, :, row, column], at(feature[0], y, x, False), rtol=1e-4, atol=1e-5)


def attended(attention: DeformableAttention, query: Tensor, cells: Tensor, where: Tensor, shapes: Shapes) -> Tensor:
    """The attention's definition, place by place: (N, C), (S, C), (N, L, 2) -> (N, C)."""
    heads, levels = attention.heads, attention.levels
    offsets = attention.offsets(query).view(-1, heads, levels, 4, 2)
    weights = attention.weights(query).view(-1, heads, levels * 4).softmax(-1).view(-1, heads, levels, 4)
    value = attention.value(cells).split([height * width for height, width in shapes])
    maps = [part.T.unflatten(1, shape) for part, shape in zip(value, shapes, strict=True)]
    size = query.shape[1] // heads
    sampled = torch.zeros_like(query)
    for n, head, level, k in np.ndindex(len(query), heads, levels, 4):
        own = slice(size * head, size * head + size)
        x, y = (where[n, level] + offsets[n, head, level, k]).tolist()
        sampled[n, own] += weights[n, head, level, k] * at(maps[level][own], y, x, True)
    return attention.output(sampled)


def injected(injector: Injector, patches: Tensor, tokens: Tensor, where: Tensor, shapes: Shapes) -> Tensor:
    looked = attended(injector.attention, injector.norm(patches), injector.token_norm(tokens), where, shapes)
    return patches + injector.gamma * looked


def extracted(extractor: Extractor, tokens: Tensor, feature: Tensor, where: Tensor, shapes: Shapes) -> Tensor:
    shape = (feature.shape[1], feature.shape[2])
    tokens = tokens + attended(extractor.attention, extractor.norm(tokens), feature.flatten(1).T, where, [shape])
    hidden = extractor.wide(extractor.ffn_norm(tokens)).split([height * width for height, width in shapes])
    mixed = torch.cat(
        [
            extractor.mix(part.T.unflatten(1, shape)[None])[0].flatten(1).T
            for part, shape in zip(hidden, shapes, strict=True)
        ]
    )
    return tokens + extractor.narrow(mixed * torch.special.ndtr(mixed))


def test_an_extractor_and_an_injector_are_their_definitions() -> None:
    extractor, injector = random_(Extractor(128)), random_(Injector(128))
    assert isinstance(extractor, Extractor) and isinstance(injector, Injector)
    assert extractor.attention.heads == 2
    shapes = [(3, 2), (1, 2), (2, 2)]
    tokens, feature = torch.rand(1, 12, 128), torch.rand(1, 128, 4, 5)
    with torch.no_grad():
        where = torch.rand(12, 1, 2) * 3
        expected = extracted(extractor, tokens[0], feature[0], where, shapes)
        torch.testing.assert_close(extractor(tokens, feature, where, shapes)[0], expected, rtol=1e-3, atol=1e-4)
        patches, where = torch.rand(1, 5, 128), torch.rand(5, 3, 2) * 3
        expected = injected(injector, patches[0], tokens[0], where, shapes)
        torch.testing.assert_close(injector(patches, tokens, where, shapes)[0], expected, rtol=1e-3, atol=1e-4)


FAMILIES = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_small_patch16_dinov3": {},
    "eva02_tiny_patch14_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_base_patch16_siglip_224": {},
    "samvit_base_patch16": {"global_attn_indexes": (1, 3), "window_size": 3},
}


@pytest.fixture(params=FAMILIES)
def adapter(request: pytest.FixtureRequest) -> ViTAdapter:
    torch.manual_seed(0)
    body = create_body(
        request.param, pyramid="adapter", out_indices=[0, 2, 3, 4], **{**SMALL, "depth": 6}, **FAMILIES[request.param]
    )
    assert isinstance(body, ViTAdapter)
    return body.eval()


@torch.no_grad()
def test_the_vit_begins_as_timms_to_the_bit_and_then_is_timms_with_what_is_injected(adapter: ViTAdapter) -> None:
    """By hooks on timm's blocks, which timm's own forward runs."""
    images = torch.rand(1, 3, 64, 96)
    filled = adapter.filled(images)
    taken: list[Tensor] = []
    for norm in adapter.norms:
        norm.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[0]))
    adapter(images)
    assert len(taken) == 4
    assert all(torch.equal(*each) for each in zip(taken, adapter.vit(filled), strict=True))

    for name, part in adapter.named_children():
        if name != "vit":
            random_(part)
    expected = adapter(images)

    network = adapter.vit.model
    finest, *coarser = adapter.prior(images)
    shapes = [tuple(part.shape[2:]) for part in coarser]
    tokens = torch.cat([(part[0].flatten(1).T + adapter.level_embed[i]) for i, part in enumerate(coarser)])
    shape, cpu = (filled.shape[2] // adapter.patch, filled.shape[3] // adapter.patch), torch.device("cpu")
    prefix = getattr(network, "num_prefix_tokens", 0)

    def inject(number: int, x: Tensor) -> Tensor:
        where = torch.stack([places(shape, adapter.patch, stride, cpu) for stride in (8, 16, 32)], dim=1)
        own = x.reshape(-1, x.shape[-1])
        new = injected(adapter.injectors[number], own[prefix:], tokens, where, shapes)
        return torch.cat([own[:prefix], new]).view(x.shape)

    def extract(number: int, x: Tensor) -> None:
        nonlocal tokens
        where = torch.cat(
            [places(s, stride, adapter.patch, cpu) for s, stride in zip(shapes, (8, 16, 32), strict=True)]
        )
        feature = x.reshape(-1, x.shape[-1])[prefix:].T.unflatten(1, shape)
        tokens = extracted(
            adapter.extractors[number], tokens, adapter.norms[number](feature[None])[0], where[:, None], shapes
        )

    for number, (first, last) in enumerate([(0, 0), (1, 2), (3, 3), (4, 4)]):
        network.blocks[first].register_forward_pre_hook(lambda _, x, n=number: (inject(n, x[0]), *x[1:]))
        network.blocks[last].register_forward_hook(lambda _, x, out, n=number: extract(n, out))
    patches = [norm(part) for norm, part in zip(adapter.norms, adapter.vit(filled), strict=True)]
    maps = [
        part.T.unflatten(1, shape)[None]
        for part, shape in zip(tokens.split([h * w for h, w in shapes]), shapes, strict=True)
    ]
    maps.insert(0, finest + adapter.finest(maps[0]))
    for found, own, patch, stride in zip(expected, maps, patches, (4, 8, 16, 32), strict=True):
        own = own + adapter.resampled(patch, stride)[:, :, : own.shape[2], : own.shape[3]]
        torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3 * own.abs().max().item())


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


def test_it_compiles_exports_saves_and_loads(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 64, 96)
    # The decoder's part is proved of the whole network.
    baseline = {"cia": False, "fusion": False, "backbone_args": {**SMALL, "pyramid": "adapter"}}
    model = random_(CSSFormer(NETWORKS[1], 3, channels=16, heads=2, **baseline))
    model.save_pretrained(tmp_path)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(CSSFormer.from_pretrained(tmp_path)(images), expected)
        tolerance = {"rtol": 1e-3, "atol": 1e-3 * expected.abs().max().item()}
        # What AOT does, the export goes through too.
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), expected, **tolerance)
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
    assert {name.split(".")[1] for name in own} == {
        "prior",
        "level_embed",
        "norms",
        "injectors",
        "extractors",
        "finest",
    }
    assert all("parametrizations" in name for name in learning - own)


@pytest.mark.parametrize(
    ("name", "pyramid", "message"),
    [
        ("vit_tiny_patch16_224", "fpn", "simple, adapter or extractors, not 'fpn'"),
        ("resnet10t", "adapter", "scales of its own"),
    ],
)
def test_other_pyramids_are_refused(name: str, pyramid: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_body(name, pyramid=pyramid)
