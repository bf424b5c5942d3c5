"""The whole network: sizes, switches, precision, saving."""

import json
import math
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cssformer import CSSFormer
from cssformer.model import Metadata, segmentation_loss
from cssformer.model.cssformer import pad
from cssformer.utils.errors import UserError
from cssformer.weights import hub

SMALL = {"backbone": "test_resnet", "num_classes": 5, "channels": 32, "heads": 4, "points": 2}
WEIGHTS = Path(__file__).parents[3] / "shared" / "weights" / "mobilenetv2_100_imagenet.safetensors"


@pytest.fixture(scope="module")
def swin() -> CSSFormer:
    torch.manual_seed(0)
    return CSSFormer(num_classes=19)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (517, 389), (33, 70)])
def test_any_size_and_batch_size_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL)
    images = torch.rand(1, 3, *size)
    model.eval()
    with torch.no_grad():
        assert model(images).shape == (1, 5, *size)
        assert model.forward_logits(images).shape == (1, 5, -(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
@pytest.mark.parametrize("autocast", [False, True])
def test_training_step_with_one_picture_reaches_every_parameter(autocast: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = segmentation_loss(model(torch.rand(1, 3, *size)), torch.randint(0, 5, (1, *size)))
    loss.backward()
    assert loss.dtype == torch.float32
    # The weights of the offsets and of MSFE's softmax start at zero, so what feeds them alone gets a gradient later.
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_swin_takes_sizes_its_windows_do_not_divide(swin: CSSFormer) -> None:
    with torch.no_grad():
        assert swin.eval()(torch.rand(1, 3, 101, 77)).shape == (1, 19, 101, 77)


def test_forward_is_the_upsampled_coarse_logits() -> None:
    model = CSSFormer(**SMALL).eval()
    images = torch.rand(2, 3, 50, 70)
    with torch.no_grad():
        grown = F.interpolate(model.forward_logits(images), scale_factor=4, mode="bilinear")[..., :50, :70]
        torch.testing.assert_close(model(images), grown)


@pytest.mark.parametrize(
    ("size", "padded", "mode"),
    [((227, 320), (256, 320), "reflect"), ((33, 34), (64, 64), "reflect"), ((32, 90), (64, 96), "edge")],
)
def test_images_are_padded_with_what_they_hold(size: tuple[int, int], padded: tuple[int, int], mode: str) -> None:
    images = torch.rand(1, 3, *size)
    added = [(0, 0), (0, 0), *((0, more - side) for side, more in zip(size, padded, strict=True))]
    assert torch.equal(pad(images), torch.from_numpy(np.pad(images.numpy(), added, mode=mode)))


def multiply_adds(model: CSSFormer, images: torch.Tensor) -> dict[str, float]:
    """Multiply-adds of the linear layers of each part, in units of 10^9, seen by hooks."""
    counts: dict[str, float] = {}

    def count(name: str):
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            part = name.split(".")[0]
            counts[part] = counts.get(part, 0) + output.numel() * module.in_features / 1e9

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return counts


def test_cost_over_the_baseline_is_the_papers(swin: CSSFormer) -> None:
    """The paper: CIA 2.4, MSFE+CSF 39.9, all 42.3 GFLOPs (multiply-adds) at 480x480; by hand 2.51, 40.1 and 42.6."""
    counts = multiply_adds(swin.eval(), torch.rand(1, 3, 480, 480))
    assert counts["cia"] == pytest.approx(2.51, rel=0.01)
    assert counts["msfe"] == pytest.approx(20.05, rel=0.001)
    assert counts["csf"] == pytest.approx(20.05, rel=0.001)


def test_the_network_starts_as_its_baseline() -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = model(images)
        model.cia, model.fusion_strides = nn.ModuleList(), ()
        torch.testing.assert_close(model(images), whole)


def parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_follow_from_the_formulas(swin: CSSFormer) -> None:
    C, M, L, K = 256, 8, 4, 16
    feed_forward = 2 * C + C * 4 * C + 4 * C + 4 * C * C + C
    offsets = C * M * L * K * 2 + M * L * K * 2
    linear = C * C + C
    assert parameters(swin.msfe) == 2 * C + offsets + C * M * L * K + M * L * K + 2 * linear + feed_forward
    assert parameters(swin.csf) == 4 * C + offsets + 4 * linear + feed_forward
    gate = C * C // 2 + C // 2 + C // 2 * C + C
    assert parameters(swin.cia) == 4 * (4 * (C * C // 4 + C // 4) + 2 * C * C + C + gate)
    assert parameters(swin.lateral) == sum(2 * c + c * C + C for c in (96, 192, 384, 768))
    assert parameters(swin.head) == 4 * C * C + 2 * C + C * 19 + 19


@pytest.mark.parametrize(("cia", "fusion"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_module_switched_off_costs_nothing(cia: bool, fusion: bool) -> None:
    model = CSSFormer(**SMALL, cia=cia, fusion=fusion).eval()
    counts = multiply_adds(model, torch.rand(1, 3, 64, 64))
    assert (parameters(model.cia) > 0, "cia" in counts) == (cia, cia)
    for part in ("msfe", "csf"):
        assert (parameters(getattr(model, part)) > 0, part in counts) == (fusion, fusion)
    assert ("scale_embed" in dict(model.named_parameters())) == fusion


def test_fusion_from_a_coarser_scale_leaves_the_finer_maps_alone() -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL, cia=False, fusion_stride=8).eval()
    assert model.fusion_strides == (8, 16, 32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    taken: list[list[torch.Tensor]] = []
    model.head.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    features = [torch.randn(1, 32 // s, 32 // s, c) for s, c in zip((1, 2, 4, 8), model.backbone.channels, strict=True)]
    model.decode(features)
    alone = [lateral(feature) for lateral, feature in zip(model.lateral, features, strict=True)]
    assert [torch.equal(*pair) for pair in zip(taken[0], alone, strict=True)] == [True, False, False, False]
    # 16² + 8² + 4² of 32² + 16² + 8² + 4² tokens, and no fourth scale to look at.
    light = multiply_adds(CSSFormer(**SMALL, fusion_stride=8).eval(), torch.rand(1, 3, 128, 128))
    whole = multiply_adds(CSSFormer(**SMALL).eval(), torch.rand(1, 3, 128, 128))
    for part in ("msfe", "csf"):
        assert light[part] < whole[part] * 336 / 1360
    with pytest.raises(ValueError, match=r"fusion_stride \(2\) must be one of \(4, 8, 16, 32\)"):
        CSSFormer(**SMALL, fusion_stride=2)


@pytest.mark.parametrize("stride", [16, 32])
def test_fusion_of_few_scales_is_saved_with_the_network(stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL, fusion_stride=stride).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    loaded = CSSFormer.from_pretrained(tmp_path)
    assert loaded.fusion_strides == (16, 32)[stride // 32 :]
    images = torch.rand(1, 3, 70, 64)
    with torch.no_grad():
        assert torch.equal(model(images), loaded(images))


def test_lateral_layers_and_classifier_start_after_glorot() -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL)
    layers = [lateral[1] for lateral in model.lateral] + [model.head.classify]
    for layer in layers:
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_lateral_layers_norm_the_whole_map() -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL)
    for lateral, channels in zip(model.lateral, model.backbone.channels, strict=True):
        norm, linear = lateral
        nn.init.normal_(norm.weight)
        feature = torch.randn(2, 6, 5, channels) * torch.rand(2, 6, 5, 1)
        centred = feature - feature.mean(dim=(1, 2, 3), keepdim=True)
        normed = centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
        expected = F.conv2d(normed.permute(0, 3, 1, 2), linear.weight[..., None, None], linear.bias)
        torch.testing.assert_close(lateral(feature), expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_depths_are_parameters() -> None:
    model = CSSFormer(**SMALL, msfe_depth=2, csf_depth=3)
    assert len(model.msfe) == 2
    assert len(model.csf) == 3
    assert model.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 5, 64, 64)


def test_every_token_can_look_at_every_scale() -> None:
    """After MSFE and CSF one pixel of the finest map depends on the whole pyramid."""
    torch.manual_seed(0)
    model = CSSFormer(**SMALL, cia=False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    maps = [torch.randn(1, 16 // s, 16 // s, 32, requires_grad=True) for s in (1, 2, 4, 8)]
    model.cross_scale_attention(maps)[0][0, 4, 4].sum().backward()
    assert all(feature.grad is not None and feature.grad.abs().sum() > 0 for feature in maps)


def test_save_and_load_give_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL, mean=(0.1, 0.2, 0.3)).eval()
    colours = tuple((i, 2 * i, 3 * i) for i in range(5))
    model.metadata = Metadata(tuple("abcde"), colours, raw_ids=(0, 3, 4, 7, 9), inference={"mode": "whole"})
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["format"] == 2 and config["architecture"] == "CSSFormer"
    assert config["network"]["backbone"] == "test_resnet" and config["classes"] == list("abcde")
    assert config["network"]["mean"] == [0.1, 0.2, 0.3] and "pretrained" not in config["network"]
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1
    loaded = CSSFormer.from_pretrained(tmp_path / "model")
    images = torch.rand(1, 3, 40, 50)
    with torch.no_grad():
        assert torch.equal(model(images), loaded(images))
    assert loaded.metadata == model.metadata
    assert loaded.hparams == model.hparams
    assert not loaded.training


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_full_disk_is_told_plainly_and_leaves_nothing(
    tmp_path: Path, no_file_above: Callable[[int], AbstractContextManager[None]]
) -> None:
    with no_file_above(100_000), pytest.raises(UserError, match=r"Cannot write .*model\.safetensors"):
        CSSFormer(**SMALL).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loading_tells_plainly_what_is_wrong(tmp_path: Path) -> None:
    CSSFormer(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"must hold config.json and model.safetensors"):
        CSSFormer.from_pretrained(tmp_path.parent)
    config = json.loads((tmp_path / "config.json").read_text())
    seven = {**config, "network": {**config["network"], "num_classes": 7}}
    (tmp_path / "config.json").write_text(json.dumps(seven))
    with pytest.raises(UserError, match=r"5 classes.*says 7"):
        CSSFormer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"is no JSON"):
        CSSFormer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "swim_tiny"}, r"no backbone named 'swim_tiny'.*swin"),
        ({"backbone": "levit_128s"}, r"strides .*16.*needs 4, 8, 16 and 32"),
        ({"backbone": "resnet10t", "weights": "missing.safetensors"}, r"no weight file missing.safetensors"),
        ({"backbone": "resnet10t", "backbone_args": {"colour": "red"}}, r"cannot be built"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_told_plainly(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CSSFormer(num_classes=3, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 36, "heads": 4}, "channels"),
        ({"channels": 0}, r"channels \(0\) .*no size below 1"),
        ({"heads": 0}, r"heads \(0\) .*no size below 1"),
        ({"ffn_ratio": 0}, "no size below 1"),
        ({"points": 0}, "no size below 1"),
        ({"msfe_depth": -1}, "no depth below 0"),
        ({"csf_depth": -1}, "no depth below 0"),
        ({"fusion_stride": 2}, "fusion_stride"),
    ],
)
def test_arguments_that_do_not_fit_each_other(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CSSFormer(**{**SMALL, **arguments})


def test_local_backbone_weights_are_loaded_with_their_own_normalisation() -> None:
    if not WEIGHTS.is_file():
        pytest.skip("needs ../shared/weights/mobilenetv2_100_imagenet.safetensors")
    from safetensors.torch import load_file

    half = (0.5, 0.5, 0.5)
    model = CSSFormer(
        "mobilenetv2_100", 7, weights=str(WEIGHTS), mean=half, std=half, backbone_args={"pad_type": "same"}
    )
    stored = load_file(WEIGHTS)
    own = model.backbone.body.state_dict()
    for name in ("conv_stem.weight", "blocks.6.0.conv_pwl.weight", "blocks.3.1.bn2.running_var"):
        torch.testing.assert_close(own[name], stored[name].float())
    assert model.hparams["mean"] == list(half)
    with pytest.raises(UserError, match="does not fit backbone resnet18"):
        CSSFormer("resnet18", 7, weights=str(WEIGHTS))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"<html>no such file</html>", pickle.dumps(print, protocol=2)])
def test_what_is_no_weight_file_is_told_without_advice_to_trust_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read") as caught:
        CSSFormer("resnet18", 7, weights=str(tmp_path / name))
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
def test_the_whole_network_can_be_cast(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = CSSFormer(**SMALL).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        found = model.to(dtype)(images.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(3, 64, 64),
        torch.rand(1, 4, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.rand(1, 3, 31, 64),
    ],
)
def test_images_of_another_form_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images must"):
        CSSFormer(**SMALL)(images)


def test_push_to_hub_uploads_what_save_pretrained_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Hub:
        """Keeps what would be uploaded."""

        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> SimpleNamespace:
            assert private and exist_ok
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id: str, folder_path: Path, **_: object) -> None:
            shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    model = CSSFormer(**SMALL).eval()
    model.push_to_hub("me/mine", private=True, token="secret")
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(CSSFormer.from_pretrained(tmp_path / "me/mine")(images), model(images))
    assert "Predictor.from_pretrained('me/mine')" in (tmp_path / "me/mine/README.md").read_text()


@pytest.mark.parametrize("grad", [True, False])
def test_enhanced_tokens_have_the_precision_of_the_queries(grad: bool) -> None:
    model = CSSFormer(**SMALL)
    assert model.msfe is not None
    seen: list[torch.dtype] = []
    model.msfe[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(1, 3, 64, 64))
    assert seen == [torch.bfloat16]


def test_a_path_into_a_folder_that_is_here_is_not_asked_for_at_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ask(*_: object, **__: object) -> str:
        raise ConnectionError

    monkeypatch.setattr(hub, "hf_hub_download", ask)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be had|nor can it be had"):
        CSSFormer.from_pretrained("runs/nope")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"There is no model folder runs/nope\.$"):
        CSSFormer.from_pretrained("runs/nope")
