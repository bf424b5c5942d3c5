"""Low-rank adaptation of a backbone's attention."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from cssformer import CSSFormer
from cssformer.backbones import add_lora, merged, trunk
from cssformer.utils.errors import UserError

KINDS = {
    "vit_tiny_patch16_224": {"depth": 4, "embed_dim": 48, "num_heads": 2},
    "vit_small_patch16_dinov3": {"depth": 4, "embed_dim": 48, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)},
    "pvt_v2_b0": {},
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> CSSFormer:
    torch.manual_seed(0)
    return CSSFormer(request.param, 3, channels=16, heads=2, points=2, backbone_args=KINDS[request.param]).eval()


def test_the_network_begins_as_it_was_and_merges_into_plain_weights(model: CSSFormer) -> None:
    images = torch.rand(1, 3, 64, 96)
    names = set(model.state_dict())
    assert merged(model) is model
    with torch.no_grad():
        before = model(images)
        add_lora(trunk(model.backbone), 2)
        assert torch.equal(model(images), before)
        added = [value for name, value in model.named_parameters() if name.endswith((".up", ".down"))]
        for value in added:
            nn.init.normal_(value, std=0.3)
        changed = model(images)
        plain = merged(model)
        assert not torch.allclose(changed, before)
        torch.testing.assert_close(plain(images), changed, rtol=1e-3, atol=1e-4)
    assert set(plain.state_dict()) == names and all(type(part) is nn.Linear for part in attention(plain))
    assert added and {id(value) for value in added} == {
        id(value) for value in trunk(model.backbone).parameters() if value.requires_grad
    }


def attention(model: CSSFormer) -> list[nn.Module]:
    parts = dict(trunk(model.backbone).named_modules())
    return [part for name, part in parts.items() if name.endswith((".attn.qkv", ".attn.proj", ".attn.q", ".attn.kv"))]


def test_each_layer_is_the_formulas(model: CSSFormer) -> None:
    plain = {name: value.clone() for name, value in trunk(model.backbone).named_parameters()}
    add_lora(trunk(model.backbone), 3)
    layers = {name: part for name, part in trunk(model.backbone).named_modules() if part in attention(model)}
    assert len(layers) >= 8
    for name, layer in layers.items():
        low = layer.parametrizations.weight[0]
        nn.init.normal_(low.up)
        assert low.down.shape == (3, layer.in_features) and low.up.shape == (layer.out_features, 3)
        tokens = torch.rand(2, layer.in_features)
        expected = linear(tokens, plain[f"{name}.weight"], layer.bias) + tokens @ low.down.T @ low.up.T
        torch.testing.assert_close(layer(tokens), expected, rtol=1e-4, atol=1e-5)


def test_a_backbone_without_attention_is_refused() -> None:
    with pytest.raises(UserError, match="no attention for training.lora"):
        add_lora(trunk(CSSFormer("test_resnet", 3, channels=16, heads=2, points=2).backbone), 2)


def test_a_rank_that_is_not_low_is_refused() -> None:
    tiny = CSSFormer("pvt_v2_b0", 3, channels=16, heads=2, points=2)
    with pytest.raises(UserError, match="training.lora 256 is no low rank, where the attention's weights have 256"):
        add_lora(trunk(tiny.backbone), 256)
