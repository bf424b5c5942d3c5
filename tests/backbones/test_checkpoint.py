"""Weight files under other programs' names: the maps are those of the source's own code or of timm's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from cssformer import CSSFormer
from cssformer.backbones import create_body
from cssformer.utils.errors import UserError

State = dict[str, Tensor]
SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}
VIT = {"depth": 4, "embed_dim": 48, "num_heads": 2, "img_size": 64}
IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def random_(network: nn.Module) -> Any:
    """Every tensor other than its first value, so that none is left out unseen."""
    torch.manual_seed(0)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if key.endswith("running_var") else value.normal_(std=0.2)
    return network.eval()


def loaded(name: str, state: dict[str, Any], folder: Path, **arguments: Any) -> nn.Module:
    torch.save(state, folder / "weights.pth")
    body = create_body(name, weights=str(folder / "weights.pth"), **arguments).eval()
    assert "larger network" not in getattr(body, "vit", body).origin
    return body


def maps(body: nn.Module, images: Tensor = IMAGES) -> list[Tensor]:
    with torch.no_grad():
        return [feature.clone() for feature in getattr(body, "vit", body)(images)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def renamed(state: State, *rules: tuple[str, str]) -> State:
    for before, after in rules:
        state = {re.sub(before, after, key): value for key, value in state.items()}
    return state


def headless(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def official_swin(network: nn.Module) -> State:
    """Merging closes a stage there, and opens the next one in timm."""
    return {
        re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key): value
        for key, value in headless(network.state_dict()).items()
    }


def mm_swin(network: nn.Module) -> State:
    """Merging by ``nn.Unfold``: channel by channel its four places, row by row."""
    state = {}
    for key, value in official_swin(network).items():
        if ".downsample." in key:
            channels = value.shape[-1] // 4
            # The official code: (0, 0), (1, 0), (0, 1), (1, 1), as (row, column).
            official = {(0, 0): 0, (1, 0): 1, (0, 1): 2, (1, 1): 3}
            order = [
                official[row, column] * channels + c for c in range(channels) for row in (0, 1) for column in (0, 1)
            ]
            value = value[..., order]
        state[key] = value
    return renamed(
        state,
        (r"^layers\.", "stages."),
        (r"\.attn\.", ".attn.w_msa."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"patch_embed\.proj\.", "patch_embed.projection."),
    )


def dinov2(state: State) -> State:
    """The class token's position stands in the table there, in timm it is added to the token."""
    position = torch.rand(1, 1, 48)
    return {
        **renamed(state, (r"^reg_token$", "register_tokens")),
        "cls_token": state["cls_token"] - position,
        "pos_embed": torch.cat([position, state["pos_embed"]], 1),
        "mask_token": torch.zeros(1, 48),
    }


FB_CONVNEXT = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"\.blocks\.", "."),
    (r"conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
)
MM_VIT = (
    (r"^blocks\.", "layers."),
    (r"\.norm(\d)\.", r".ln\1."),
    (r"^norm\.", "ln1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
)
SOURCES: dict[str, tuple[str, dict[str, Any], Callable[[nn.Module], dict[str, Any]]]] = {
    "timm": ("resnet10t", {}, lambda network: network.state_dict()),
    "timm in training": ("resnet10t", {}, lambda network: {"state_dict_ema": network.state_dict(), "epoch": 3}),
    "compiled and parallel": (
        "resnet10t",
        {},
        lambda network: renamed(network.state_dict(), (r"^", "_orig_mod.module.")),
    ),
    "Lightning": (
        "convnext_atto",
        CONVNEXT,
        lambda network: {
            "state_dict": {**renamed(network.state_dict(), (r"^", "model.encoder.")), "model.decoder.x": torch.ones(2)},
            "pytorch-lightning_version": "2.6.0",
        },
    ),
    "Swin, official": ("swin_tiny_patch4_window7_224", SWIN, lambda network: {"model": official_swin(network)}),
    "Swin, mmsegmentation": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        lambda network: {
            "meta": {"epoch": 1},
            "state_dict": {
                **renamed(mm_swin(network), (r"^", "backbone.")),
                "backbone.norm3.weight": torch.ones(192),
                "decode_head.conv_seg.weight": torch.ones(19, 8, 1, 1),
            },
        },
    ),
    "ConvNeXt, official": (
        "convnext_atto",
        CONVNEXT,
        lambda network: {"model": renamed(headless(network.state_dict()), *FB_CONVNEXT)},
    ),
    "ConvNeXt, mmpretrain": (
        "convnext_atto",
        CONVNEXT,
        lambda network: renamed(
            headless(network.state_dict()), *FB_CONVNEXT, ("dwconv", "depthwise_conv"), ("pwconv", "pointwise_conv")
        ),
    ),
    "ViT, mmpretrain": (
        "vit_tiny_patch16_224",
        VIT,
        lambda network: renamed(headless(network.state_dict()), *MM_VIT, (r"^", "backbone.")),
    ),
    "ViT, mmsegmentation": (
        "vit_tiny_patch16_224",
        VIT,
        lambda network: renamed(
            headless(network.state_dict()), *MM_VIT, (r"attn\.proj", "attn.attn.out_proj"), (r"qkv\.", "attn.in_proj_")
        ),
    ),
    "DINO in training": (
        "vit_tiny_patch16_224",
        VIT,
        lambda network: {
            "teacher": renamed(headless(network.state_dict()), (r"^", "module.backbone.")),
            "student": renamed({key: 0 * value for key, value in network.state_dict().items()}, (r"^", "backbone.")),
            "epoch": 7,
        },
    ),
    "DINOv2": (
        "vit_small_patch14_reg4_dinov2",
        VIT | {"img_size": 70},
        lambda network: dinov2(network.state_dict()),
    ),
    "DINOv3": (
        "vit_small_patch16_dinov3",
        {"depth": 4, "embed_dim": 48, "num_heads": 2},
        lambda network: (
            {
                f"teacher.backbone.{re.sub('gamma_', 'ls', key)}{'.gamma' if 'gamma_' in key else ''}".replace(
                    "reg_token", "storage_tokens"
                ): value
                for key, value in network.state_dict().items()
            }
            | {"teacher.dino_head.last.weight": torch.ones(3)}
        ),
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_names_and_channels_become_timms(source: str, tmp_path: Path) -> None:
    name, arguments, written = SOURCES[source]
    dynamic = {"dynamic_img_size": True} if name.startswith("vit") else {}
    strict = {"strict_img_size": False} if name.startswith("swin") else {}
    theirs = random_(timm.create_model(name, **arguments, **dynamic, **strict))
    found = loaded(name, written(theirs), tmp_path, **arguments)
    theirs_maps = timm.create_model(name, features_only=True, **arguments, **dynamic, **strict).eval()
    inner = getattr(theirs_maps, "model", theirs_maps)
    own = {key.replace(".", "_"): value for key, value in theirs.state_dict().items()}
    inner.load_state_dict({key: own[key.replace(".", "_")] for key in inner.state_dict()})
    if hasattr(found, "vit"):
        theirs_maps.out_indices = found.vit.out_indices
    images = torch.rand(1, 3, 70, 98) if "patch14" in name else IMAGES
    assert_same(maps(found, images), maps(theirs_maps, images))


def after(parts: list[nn.Module], network: nn.Module, images: Tensor = IMAGES) -> list[Tensor]:
    seen: list[Tensor] = []
    for part in parts:
        part.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        network(images)
    return seen


def test_torchvisions_resnet(tmp_path: Path) -> None:
    theirs = random_(torchvision.models.resnet18())
    expected = after([theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4], theirs)
    assert_same(maps(loaded("resnet18", theirs.state_dict(), tmp_path))[1:], expected)


def test_torchvisions_swin(tmp_path: Path) -> None:
    # It shifts no window on a map as small as one, timm does: the last stage shifts none here.
    small = {"embed_dim": 24, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": [4, 4]}
    theirs = random_(torchvision.models.SwinTransformer([4, 4], **small))
    images = torch.rand(1, 3, 128, 160)
    body = loaded("swin_tiny_patch4_window7_224", theirs.state_dict(), tmp_path, **SWIN | {"depths": (2, 2, 2, 1)})
    assert_same(maps(body, images), after(list(theirs.features[1::2]), theirs, images))


def test_torchvisions_convnext(tmp_path: Path) -> None:
    widths = (*CONVNEXT["dims"], None)
    blocks = [CNBlockConfig(widths[i], widths[i + 1], depth) for i, depth in enumerate(CONVNEXT["depths"])]
    theirs = random_(ConvNeXt(blocks))
    expected = after(list(theirs.features[1::2]), theirs)
    assert_same(maps(loaded("convnext_tiny", theirs.state_dict(), tmp_path, **CONVNEXT)), expected)


def test_torchvisions_vit(tmp_path: Path) -> None:
    theirs = random_(torchvision.models.VisionTransformer(64, 16, 4, 2, 48, 192))
    seen: list[Tensor] = []
    for block in theirs.encoder.layers:
        block.register_forward_hook(
            lambda _, __, output: seen.append(output[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
        )
    square = IMAGES[..., :64]
    with torch.no_grad():
        theirs(square)
    assert_same(maps(loaded("vit_tiny_patch16_224", theirs.state_dict(), tmp_path, **VIT), square), seen)


def saved(network: "transformers.PreTrainedModel", folder: Path) -> State:
    """Under the names that transformers writes, which are not those of its modules."""
    network.save_pretrained(folder / "theirs")
    return load_file(folder / "theirs" / "model.safetensors")


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_of_transformers(registers: int, tmp_path: Path) -> None:
    small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    kinds = transformers.Dinov2Config, transformers.Dinov2Model
    if registers:
        small["num_register_tokens"] = registers
        kinds = transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel
    theirs = random_(kinds[1](kinds[0](**small)))
    images = torch.rand(1, 3, 70, 70)
    with torch.no_grad():
        states = theirs(images, output_hidden_states=True).hidden_states[1:]
    expected = [state[:, 1 + registers :].mT.unflatten(2, (5, 5)) for state in states]
    name = f"vit_small_patch14{'_reg4' if registers else ''}_dinov2"
    for state in (saved(theirs, tmp_path), theirs.state_dict(), renamed(theirs.state_dict(), (r"^", "dinov2."))):
        assert_same(maps(loaded(name, state, tmp_path, **VIT | {"img_size": 70}), images), expected)


def test_dinov3_of_transformers(tmp_path: Path) -> None:
    small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 192}
    theirs = random_(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**small, num_register_tokens=4)))
    with torch.no_grad():
        states = theirs(IMAGES, output_hidden_states=True).hidden_states[1:]
    expected = [state[:, 5:].mT.unflatten(2, (4, 6)) for state in states]
    arguments = {"depth": 4, "embed_dim": 48, "num_heads": 2}
    for state in (saved(theirs, tmp_path), theirs.state_dict()):
        assert_same(maps(loaded("vit_small_patch16_dinov3_qkvb", state, tmp_path, **arguments)), expected)


def test_swin_of_transformers(tmp_path: Path) -> None:
    small = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4, "image_size": 128}
    theirs = random_(transformers.SwinModel(transformers.SwinConfig(**small)))
    images = torch.rand(1, 3, 128, 128)
    seen = after([layer.blocks[-1] for layer in theirs.encoder.layers], theirs, images)
    sides = (32, 16, 8, 4)
    states = [seen[i][0] if isinstance(seen[i], tuple) else seen[i] for i in range(4)]
    expected = [state.reshape(1, side, side, -1) for state, side in zip(states, sides, strict=True)]
    for state in (saved(theirs, tmp_path), theirs.state_dict(), renamed(theirs.state_dict(), (r"^", "swin."))):
        body = loaded("swin_tiny_patch4_window7_224", state, tmp_path, **SWIN, img_size=128)
        assert_same(maps(body, images), expected)


def test_convnext_of_transformers(tmp_path: Path) -> None:
    config = transformers.ConvNextConfig(hidden_sizes=CONVNEXT["dims"], depths=CONVNEXT["depths"])
    theirs = random_(transformers.ConvNextModel(config))
    expected = after(list(theirs.encoder.stages), theirs)
    for state in (saved(theirs, tmp_path), theirs.state_dict(), renamed(theirs.state_dict(), (r"^", "convnext."))):
        assert_same(maps(loaded("convnext_tiny", state, tmp_path, **CONVNEXT)), expected)


def test_efficientnet_pytorch(tmp_path: Path) -> None:
    """segmentation-models-pytorch has its code."""
    theirs = random_(smp.encoders.get_encoder("efficientnet-b0", weights=None))
    state = renamed(theirs.state_dict(), (r"^", "encoder."))
    expected = after([theirs._blocks[number] for number in (2, 4, 10, 15)], theirs)
    assert_same(maps(loaded("tf_efficientnet_b0", state, tmp_path))[1:], expected)
    with pytest.raises(UserError, match="take the backbone tf_efficientnet_b0"):
        loaded("efficientnet_b0", state, tmp_path)


def test_tables_of_positions_are_interpolated(tmp_path: Path) -> None:
    """As timm does when it loads them itself."""
    for name, small, large in (
        ("swin_tiny_patch4_window7_224", SWIN, SWIN | {"window_size": 8}),
        ("vit_tiny_patch16_224", VIT, VIT | {"img_size": 96}),
    ):
        theirs = random_(timm.create_model(name, **small))
        found = loaded(name, theirs.state_dict(), tmp_path, **large).state_dict()
        overlay = {"state_dict": dict(theirs.state_dict())}
        expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **large)
        own = {key.replace(".", "_"): value for key, value in expected.state_dict().items()}
        tables = [key for key in found if "pos_embed" in key or "bias_table" in key]
        assert tables
        for key in tables:
            assert torch.equal(found[key], own[key.removeprefix("vit.model.").replace(".", "_")]), key


def test_a_first_layer_for_grey_pictures_sees_the_mean_of_the_colours(tmp_path: Path) -> None:
    theirs = random_(timm.create_model("resnet18", in_chans=1, features_only=True))
    found = loaded("resnet18", theirs.state_dict(), tmp_path)
    assert_same(maps(found), maps(theirs, IMAGES.mean(1, keepdim=True)))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_first_layer_for_rgb_is_adapted_as_timm_does(tmp_path: Path, count: int) -> None:
    theirs = random_(timm.create_model("resnet18", features_only=True))
    found = loaded("resnet18", theirs.state_dict(), tmp_path, in_chans=count)
    expected = timm.create_model("resnet18", features_only=True, in_chans=count)
    first = {"conv1.weight": adapt_input_conv(count, theirs.state_dict()["conv1.weight"])}
    expected.load_state_dict({**theirs.state_dict(), **first})
    images = torch.rand(1, count, 64, 64)
    assert_same(maps(found, images), maps(expected.eval(), images))


def test_what_was_taken_over_is_told(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    del state["layer4.1.bn2.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    body = create_body("resnet18", weights=str(tmp_path / "weights.safetensors"))
    told = "99 of 100 tensors of the backbone (100.0% of its parameters) come from"
    assert body.origin == f"{told} {tmp_path / 'weights.safetensors'}; anew begin layer4.1.bn2.weight"


def test_weights_of_a_larger_network_are_told(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "weights.safetensors")
    body = create_body("resnet18", weights=str(tmp_path / "weights.safetensors"))
    assert "100 of 100 tensors" in body.origin and body.origin.endswith("perhaps of a larger network")
    assert re.search(r"; \d+ more are of layers that it does not have \(layer1\.2\.\S+, \.\.\.\)", body.origin)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: {key: v for key, v in timm.create_model("resnet18").state_dict().items() if "layer4" not in key},
            r"25% of its parameters are there, 90% are asked for.*has conv1.weight, .*backbone conv1.weight",
        ),
        (lambda: timm.create_model("resnet34").state_dict() | {"conv1.weight": torch.ones(64, 5, 7, 7)}, r"5, 7, 7\)"),
        (lambda: timm.create_model("resnet50").state_dict(), r"\d% of its parameters .*conv1.weight"),
        (lambda: timm.create_model("convnext_atto").state_dict(), r"0% of its parameters .*stem.0.weight"),
        (dict, r"0% of its parameters .*The file has nothing"),
    ],
)
def test_weights_of_another_network_are_refused(state: Callable[[], State], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"does not fit backbone resnet18: .*{message}"):
        loaded("resnet18", state(), tmp_path)


def test_the_decoders_first_weights_do_not_depend_on_a_file(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.safetensors")
    heads = []
    for weights in (None, str(tmp_path / "weights.safetensors")):
        torch.manual_seed(0)
        model = CSSFormer("resnet10t", 3, weights=weights, channels=16, heads=2, points=2)
        heads.append(model.head.classify.weight)
    assert torch.equal(*heads)
