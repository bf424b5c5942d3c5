"""The peers are the other libraries' own code, and are trained like CSSFormer."""

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cssformer.model import SegmentationNetwork, segmentation_loss
from cssformer.training.assemble import build_model
from cssformer.training.datasets import Dataset
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.train import train
from cssformer.utils.errors import UserError
from studies.baselines import networks
from studies.baselines.networks import DECODERS, BaselineNetwork, build_baseline


@pytest.mark.parametrize("decoder", DECODERS)
def test_any_size_forward_and_backward(decoder: str) -> None:
    size = (65, 97)
    torch.manual_seed(0)
    model = BaselineNetwork(decoder, "resnet10t", 5, channels=16)
    images = torch.rand(2, 3, *size)
    assert model.forward_logits(images).shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    segmentation_loss(model(images), torch.randint(0, 5, (2, *size))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        assert model.eval()(images[:1]).shape == (1, 5, *size)


@pytest.mark.parametrize(
    ("decoder", "library", "backbone"),
    [
        ("fpn", partial(smp.FPN, upsampling=1), "mobilenetv2_100"),
        ("upernet", partial(smp.UPerNet, upsampling=1), "mobilenetv2_100"),
        # On backbones with a map of stride 2 the library's SegFormer reads that too; the original does not.
        ("segformer", partial(smp.Segformer, upsampling=1), "convnext_atto"),
    ],
)
def test_logits_are_those_of_the_librarys_own_model(decoder: str, library: partial[nn.Module], backbone: str) -> None:
    torch.manual_seed(0)
    peer = BaselineNetwork(decoder, backbone, 5).eval()
    theirs = library(f"tu-{backbone}", encoder_weights=None, classes=5).eval()
    assert same_first_weights(peer.decoder.decoder, theirs.decoder)
    assert same_first_weights(peer.decoder.head, theirs.segmentation_head)
    theirs.encoder.model.load_state_dict(peer.backbone.body.state_dict())
    theirs.decoder.load_state_dict(peer.decoder.decoder.state_dict())
    theirs.segmentation_head.load_state_dict(peer.decoder.head.state_dict())
    images = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        found = peer.forward_logits(images)
        expected = theirs((images - peer.backbone.pixel_mean) / peer.backbone.pixel_std)
    assert found.std() > 0.01
    torch.testing.assert_close(found, F.interpolate(expected, found.shape[2:], mode="bilinear"))


def pyramid(channels: list[int]) -> list[Tensor]:
    return [torch.randn(2, c, 64 // 2**i, 32 // 2**i) for i, c in enumerate(channels)]


def test_deeplab_is_the_librarys_on_a_deepest_map_enlarged_to_stride_16() -> None:
    torch.manual_seed(0)
    channels = [8, 16, 24, 32]
    ours = networks.deeplabv3plus(channels, 5).eval()
    theirs = smp.DeepLabV3Plus("tu-resnet10t", encoder_weights=None, classes=5, upsampling=1).eval()
    # Their own layers, made for other widths and by the paper's rates for stride 16.
    fresh = type(theirs.decoder)(
        [3, 0, *channels], 5, 256, (6, 12, 18), output_stride=16, aspp_separable=True, aspp_dropout=0.5
    ).eval()
    fresh.load_state_dict(ours.decoder.state_dict())
    shapes = {name: value.shape for name, value in theirs.decoder.state_dict().items()}
    dilations = {part.dilation for part in ours.modules() if isinstance(part, nn.Conv2d)}
    assert dilations == {(1, 1), (6, 6), (12, 12), (18, 18)}
    # All but the layers on the backbone's maps have the shape that the library's defaults give them.
    assert {name for name, value in fresh.state_dict().items() if value.shape != shapes[name]} <= {
        "aspp.0.convs.0.0.weight",
        *(f"aspp.0.convs.{branch}.0.{part}.weight" for branch in (1, 2, 3) for part in (0, 1)),
        "aspp.0.convs.4.1.weight",
        "block1.0.weight",
    }
    assert same_first_weights(ours.head, theirs.segmentation_head)
    wide = networks.deeplabv3plus(theirs.encoder.out_channels[2:], 5)
    assert same_first_weights(wide.decoder, theirs.decoder)
    theirs.segmentation_head.load_state_dict(ours.head.state_dict())
    features = pyramid(channels)
    deepest = F.interpolate(features[3], scale_factor=2, mode="bilinear")
    with torch.no_grad():
        expected = theirs.segmentation_head(fresh([None, None, *features[:3], deepest]))
        torch.testing.assert_close(ours(features), expected)


def test_pspnet_is_the_librarys_on_a_deepest_map_enlarged_to_stride_8() -> None:
    torch.manual_seed(0)
    theirs = smp.PSPNet("tu-resnet10t", encoder_weights=None, encoder_depth=5, classes=5, upsampling=1).eval()
    ours = networks.pspnet(theirs.encoder.out_channels[2:], 5).eval()
    assert same_first_weights(ours.decoder, theirs.decoder)
    assert same_first_weights(ours.head, theirs.segmentation_head)
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    theirs.segmentation_head.load_state_dict(ours.head.state_dict())
    features = pyramid(theirs.encoder.out_channels[2:])
    enlarged = F.interpolate(features[3], scale_factor=4, mode="bilinear")
    with torch.no_grad():
        expected = theirs.segmentation_head(theirs.decoder([*features[:3], enlarged]))
        assert expected.shape[2:] == features[1].shape[2:]
        torch.testing.assert_close(ours(features), expected)


def test_dpt_has_the_widths_of_the_librarys_model() -> None:
    ours = networks.dpt([192] * 4, 5)
    theirs = smp.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, decoder_readout="ignore", classes=5)
    shapes = {name: value.shape for name, value in theirs.decoder.state_dict().items() if ".upsample." not in name}
    assert {name: value.shape for name, value in ours.decoder.state_dict().items()} == shapes
    assert same_first_weights(ours.head, theirs.segmentation_head)
    ours.head.load_state_dict(theirs.segmentation_head.state_dict())


def same_first_weights(ours: nn.Module, theirs: nn.Module) -> bool:
    """By their mean and deviation, which tell one initialisation from another, as exactly as so many draws allow."""

    def alike(one: Tensor, other: Tensor) -> bool:
        error = other.numel() ** -0.5
        (mean, deviation), (expected, spread) = ((float(x.mean()), float(x.std())) for x in (one, other))
        return deviation == pytest.approx(spread, rel=0.05 + 4 * error) and mean == pytest.approx(
            expected, abs=1e-6 + 8 * error * spread
        )

    return all(
        alike(ours.get_parameter(name).detach(), value.detach())
        for name, value in theirs.named_parameters()
        if value.numel() > 1
    )


def test_upernet512_is_the_head_of_the_librarys_model_with_its_first_weights() -> None:
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    channels = [8, 16, 24, 32]
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=channels, depths=[1] * 4, layer_type="basic", out_indices=[1, 2, 3, 4]
    )
    torch.manual_seed(0)
    theirs = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=5)).eval()
    ours = networks.upernet512(channels, 5).eval()
    assert same_first_weights(ours, theirs.decode_head)
    ours.load_state_dict(theirs.decode_head.state_dict())
    features = pyramid(channels)
    with torch.no_grad():
        torch.testing.assert_close(ours(features), theirs.decode_head(features))


def test_mask2former_is_the_pixel_decoder_of_the_librarys_model_with_its_first_weights() -> None:
    from transformers import Mask2FormerConfig, Mask2FormerModel, SwinConfig

    backbone = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_indices=[1, 2, 3, 4])
    torch.manual_seed(0)
    theirs = Mask2FormerModel(Mask2FormerConfig(backbone_config=backbone)).eval().pixel_level_module.decoder
    ours = networks.mask2former([8, 16, 32, 64], 5).eval()
    assert same_first_weights(ours.decoder, theirs)
    ours.decoder.load_state_dict(theirs.state_dict())
    features = pyramid([8, 16, 32, 64])
    with torch.no_grad():
        torch.testing.assert_close(ours(features), ours.classifier(theirs(features).mask_features))


def test_mask2former_looks_where_float32_says_also_in_mixed_precision() -> None:
    torch.manual_seed(0)
    ours = networks.mask2former([8, 16, 32, 64], 5).eval()
    features = pyramid([8, 16, 32, 64])
    with torch.no_grad():
        expected = ours.decoder(features).mask_features
        found = []
        ours.classifier.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        with torch.autocast("cpu", torch.bfloat16):
            ours([feature.clone() for feature in features])
    torch.testing.assert_close(found[0], expected)


def recipe(output: Path, **training: object) -> Recipe:
    return Recipe(
        output=str(output),
        seed=3,
        model=ModelConfig("test_resnet", channels=16, heads=2, points=2),
        scenes=ScenesConfig(count=10, val_count=1, size=(64, 64)),
        augment=AugmentConfig(crop=(64, 64)),
        training=TrainingConfig(steps=2, batch_size=2, warmup_steps=0, validate_every=2, workers=0, **training),
    )


# Writing the checkpoints of the largest takes seconds.
@pytest.mark.parametrize(
    "decoder",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("upernet512", "dpt") else []) for name in DECODERS],
)
def test_every_peer_trains_scores_and_is_loaded_again(decoder: str, tmp_path: Path) -> None:
    evaluation = train(recipe(tmp_path, precision="bf16"), build=partial(build_baseline, decoder))
    assert evaluation is not None and 0 <= evaluation.scores.miou <= 1
    first = build_baseline(decoder, recipe(tmp_path), dataset())
    model = BaselineNetwork.from_pretrained(tmp_path)
    assert model.metadata.classes == evaluation.info.classes
    assert any(
        not torch.equal(one, other)
        for one, other in zip(first.decoder.parameters(), model.decoder.parameters(), strict=True)
    )


def dataset() -> Dataset:
    from cssformer.data import SyntheticScenes

    return SyntheticScenes(1)


def test_variants_see_the_same_pictures_and_start_with_the_same_backbone(tmp_path: Path) -> None:
    seen: dict[str, list[Tensor]] = {}
    first: dict[str, dict[str, Tensor]] = {}

    def watched(name: str, recipe: Recipe, data: Dataset) -> SegmentationNetwork:
        model = build_baseline(name, recipe, data) if name in DECODERS else build_model(recipe, data)
        seen[name] = []
        first[name] = {key: value.clone() for key, value in model.backbone.state_dict().items()}
        model.backbone.register_forward_pre_hook(
            lambda backbone, inputs: seen[name].append(inputs[0].clone()) if backbone.training else None
        )
        return model

    for name in ("cssformer", "baseline", "fpn"):
        one = recipe(tmp_path / name)
        if name == "baseline":
            one = dataclasses.replace(one, model=dataclasses.replace(one.model, cia=False, fusion=False))
        train(one, build=partial(watched, name))
    assert len(seen["cssformer"]) == 2
    for name in ("baseline", "fpn"):
        assert all(torch.equal(*pair) for pair in zip(seen["cssformer"], seen[name], strict=True))
        assert all(torch.equal(value, first[name][key]) for key, value in first["cssformer"].items())


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(channels: list[int], num_classes: int) -> nn.Module:
        raise ModuleNotFoundError("no such module", name="segmentation_models_pytorch")

    monkeypatch.setitem(DECODERS, "fpn", missing)
    with pytest.raises(UserError, match=r"segmentation_models_pytorch.*install cssformer\[study\]"):
        BaselineNetwork("fpn", "resnet10t", 3)


def test_a_baseline_is_predicted_with_from_the_command_line(tmp_path: Path) -> None:
    """In a process of its own, in which nobody has imported studies."""
    BaselineNetwork("fpn", "resnet10t", 3, channels=16).save_pretrained(tmp_path / "model")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "p.png")
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "p.png"), "--output", str(tmp_path / "out")]
    program = f"import sys; from cssformer.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "labels" / "p.png").is_file()
