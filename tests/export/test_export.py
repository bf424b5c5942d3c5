"""Exported files in the runtimes they are for, beside the network they were made of."""

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import Conv2dSame
from torch import Tensor, nn

from cssformer import CSSFormer, Predictor
from cssformer.data import SegmentationFolder
from cssformer.data.channels import Channels
from cssformer.export import ExportedNetwork, export_model, formats, parity, quantize
from cssformer.export.graph import _REWRITTEN, Deployment
from cssformer.export.parity import SIZES
from cssformer.inference import predict
from cssformer.inference.files import predict_files
from cssformer.inference.views import SMALLEST
from cssformer.metrics import evaluate
from cssformer.utils.errors import UserError
from cssformer.weights.hub import Metadata

onnxruntime = pytest.importorskip("onnxruntime")

SMALL = {"num_classes": 5, "channels": 16, "heads": 2, "points": 2, "dropout": 0.0}
TINY_VIT = {"embed_dim": 16, "depth": 4, "num_heads": 2}
TINY_SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]}
# What a test does not look at is paid for by the node.
BASELINE = {"cia": False, "fusion": False}


def network(backbone: str = "test_resnet", **arguments: Any) -> CSSFormer:
    torch.manual_seed(0)
    model = CSSFormer(backbone, **SMALL, **arguments)
    for parameter in model.parameters():
        # Branches that begin at zero would hide what is wrong in them.
        if not parameter.abs().max():
            nn.init.normal_(parameter, std=0.2)
    model.metadata = Metadata(
        tuple("abcde"), tuple((i, 2 * i, 255 - i) for i in range(5)), None, {"mode": "whole"}, "mit"
    )
    return model.eval()


def picture(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(height).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((height // 9 + 1, width // 9 + 1, 1), np.uint8))[:height, :width]


@pytest.fixture(scope="module")
def model() -> CSSFormer:
    return network(fusion_stride=8)


@pytest.fixture(scope="module")
def exported(model: CSSFormer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    require_parity(export_model(model, path))
    return path


def require_parity(found: dict[str, Any]) -> None:
    rows = found["parity"]
    assert [(row["batch"], row["height"], row["width"]) for row in rows] == list(SIZES)
    assert max(row["difference"] for row in rows) < 1e-4 and min(row["equal"] for row in rows) > 0.999


@pytest.mark.parametrize(
    ("backbone", "arguments", "sampling"),
    [
        ("mobilenetv2_100", {"fusion_stride": 8}, "gridsample"),
        ("swin_tiny_patch4_window7_224", {"backbone_args": TINY_SWIN}, "gather"),
        ("vit_tiny_patch16_224", {"backbone_args": TINY_VIT, "fusion_stride": 16}, "gather"),
        ("vit_tiny_patch16_224", {"backbone_args": {**TINY_VIT, "pyramid": "adapter"}, **BASELINE}, "gather"),
    ],
)
def test_onnx_runtime_computes_what_the_network_does(
    backbone: str, arguments: dict[str, Any], sampling: Any, tmp_path: Path
) -> None:
    require_parity(export_model(network(backbone, **arguments), tmp_path / "model.onnx", sampling=sampling))
    nodes = {node.op_type for node in pytest.importorskip("onnx").load(tmp_path / "model.onnx").graph.node}
    assert {"GridSample", "Loop"} & nodes == {"GridSample" if sampling == "gridsample" else "Loop"}


def test_predictions_of_the_file_are_those_of_the_network(model: CSSFormer, exported: Path) -> None:
    for options in ({}, {"mode": "slide", "crop": (64, 64), "flip": True}, {"short_side": 80, "scales": (0.75, 1.0)}):
        own, other = Predictor(model, "cpu", **options), Predictor.from_exported(exported, **options)
        for size in ((97, 131), (70, 45), (20, 90)):
            expected, found = own(picture(*size)), other(picture(*size))
            assert (found.classes, found.colours) == (expected.classes, expected.colours)
            assert np.mean(found.labels == expected.labels) > 0.999
            np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)


def test_openvino_gives_the_same_predictions(model: CSSFormer, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    export_model(model, tmp_path / "model.xml")
    assert {path.name for path in tmp_path.iterdir()} == {"model.xml", "model.bin"}
    exported = ExportedNetwork(tmp_path / "model.xml")
    for options in ({}, {"mode": "slide", "crop": (64, 64)}):
        expected = Predictor(model, "cpu", **options)(picture(97, 131))
        found = Predictor(exported, "cpu", **options)(picture(97, 131))
        assert found.classes == expected.classes
        assert np.mean(found.labels == expected.labels) > 0.999


def test_all_that_a_user_must_know_is_in_the_file(model: CSSFormer, exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list("abcde")
    assert json.loads(facts["colours"])[1] == [1, 2, 254]
    assert json.loads(facts["mean"]) == pytest.approx(model.backbone.mean)
    assert json.loads(facts["backbone_licence"]) == "mit" and facts["cssformer"]
    assert "license" not in facts
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", 5, "rows", "columns"])


@pytest.mark.parametrize(
    ("multilabel", "inference", "note"),
    [
        (False, {"short_side": 320}, "export with --short_side 320"),
        (True, {"mode": "slide", "crop": [64, 96]}, "a sliding window of 64x96"),
    ],
)
def test_axes_have_names_and_what_the_file_leaves_to_do_is_told(
    multilabel: bool, inference: dict[str, Any], note: str, tmp_path: Path
) -> None:
    model, path = network(**BASELINE), tmp_path / "model.onnx"
    model.metadata = replace(model.metadata, multilabel=multilabel, inference=inference)
    axes = {"probabilities": ["batch", 5, "height", "width"]}
    if not multilabel:
        axes |= {"labels": ["batch", "height", "width"], "confidence": ["batch", "height", "width"]}
    assert note in export_model(model, str(path), returns=tuple(axes))["note"]
    assert {each.name: each.shape for each in onnxruntime.InferenceSession(path).get_outputs()} == axes


@pytest.mark.parametrize("size", [(1, 1), (31, 200), (32, 32), (33, 64), (65, 32), (64, 97)])
def test_pictures_are_padded_as_in_prediction(model: CSSFormer, size: tuple[int, int]) -> None:
    image = torch.from_numpy(picture(*size)).permute(2, 0, 1)
    labels, confidence, *_ = predict(model, image, confidence=True)
    with torch.inference_mode():
        found = Deployment(model, ("labels", "confidence"))(image[None].float() / 255)
    assert SMALLEST == 32
    torch.testing.assert_close(found[1][0], confidence, atol=1e-5, rtol=0)
    assert (found[0][0] == labels).float().mean() > 0.999


def test_the_file_resizes_and_labels_by_itself(tmp_path: Path) -> None:
    model, path = network(**BASELINE), tmp_path / "labels.onnx"
    model.metadata = replace(model.metadata, inference={"mode": "whole", "short_side": 96})
    done = export_model(model, path, returns=("labels", "confidence"), input="uint8", short_side=96)
    assert done["note"] is None
    session, predictor = onnxruntime.InferenceSession(path), Predictor(model, "cpu")
    for size in ((131, 97), (48, 61), (200, 333)):
        expected = predictor(picture(*size))
        labels, confidence = session.run(None, {"images": picture(*size)[None]})
        assert labels.dtype == np.int64 and np.mean(labels[0] == expected.labels) > 0.999
        np.testing.assert_allclose(confidence[0], expected.confidence, atol=1e-4)
    with pytest.raises(UserError, match="does not return logits of pictures as they are"):
        Predictor.from_exported(path)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (4, 2), ((1, 5), 1)])
def test_the_padding_of_tensorflow_needs_no_sides(kernel: Any, dilation: int) -> None:
    """Where strides divide them; each that is asked for as a symbol makes torch.export slower than the one before."""
    layers = nn.Sequential(*(Conv2dSame(2, 2, kernel, stride, dilation=dilation) for stride in (2, 1, 2)))
    fixed = copy.deepcopy(layers)
    for layer in fixed:
        layer.__class__ = _REWRITTEN[Conv2dSame]
    images = torch.rand(1, 2, 64, 96)
    torch.testing.assert_close(fixed(images), layers(images))
    sides = {axis: 32 * torch.export.Dim(f"blocks_{axis}", min=2, max=512) for axis in (2, 3)}
    program = torch.export.export(fixed, (images,), dynamic_shapes=(sides,))
    assert not [node for node in program.graph.nodes if "sym_size" in str(node.target)]


@pytest.mark.slow
def test_torch_export_at_any_size(model: CSSFormer, tmp_path: Path) -> None:
    found = export_model(model, tmp_path / "model.pt2")
    assert max(row["difference"] for row in found["parity"]) < 1e-4


@pytest.mark.slow
def test_torch_export_at_a_fixed_size(tmp_path: Path) -> None:
    model, path = network(fusion_stride=32), tmp_path / "model.pt2"
    found = export_model(model, path, returns=("probabilities",), size=(64, 96))
    assert max(row["difference"] for row in found["parity"]) < 1e-4
    program = torch.export.load(path, extra_files=(extra := {"cssformer.json": ""}))
    assert json.loads(json.loads(extra["cssformer.json"])["classes"]) == list("abcde")
    images = torch.rand(3, 3, 51, 77)
    with torch.inference_mode():
        expected = Deployment(model, ("probabilities",), size=(64, 96))(images)[0]
    torch.testing.assert_close(program.module()(images)[0], expected, atol=1e-5, rtol=1e-4)


class Twice(nn.Module):
    """As quick to trace as it can be, with weights above the limit below."""

    uint8 = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(100_000))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.weight[0]


def test_a_full_disk_under_a_program_of_torch_is_an_error(
    tmp_path: Path, no_file_above: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Torch's own writer ends the process then."""
    with no_file_above(50_000), pytest.raises(OSError, match="File too large"):
        formats._write_pt2(Twice(), torch.rand(2, 3, 100, 131), tmp_path / "model.pt2", {})  # type: ignore[arg-type]


class Frozen(CSSFormer):
    """A branch on the size, which tracing takes for a constant."""

    def decode(self, features: list[Tensor]) -> Tensor:
        logits = super().decode(features)
        return 2 * logits if features[0].shape[1] > 40 else logits


def test_a_file_that_computes_something_else_is_not_left(tmp_path: Path) -> None:
    model = network(**BASELINE)
    wrong = Frozen(**model.hparams).eval()
    wrong.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match=r"not written: run by ONNX Runtime, at 257x385 its values differ.* by 5"):
        export_model(wrong, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_of_openvinos_two_files(
    model: CSSFormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_file_above: Callable[[int], AbstractContextManager[None]],
) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    weights = openvino.opset13.constant(np.ones(100_000, np.float32))
    monkeypatch.setattr("cssformer.export.formats._write_onnx", lambda *arguments: None)
    monkeypatch.setattr(openvino.Core, "read_model", lambda core, path: openvino.Model([weights], [], "large"))
    told = r"Cannot write .*model\.bin: the disk may be full \(OpenVINO"
    with no_file_above(50_000), pytest.raises(UserError, match=told):
        export_model(model, tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "there"), [("model.onnx", "model.onnx"), ("model.xml", "model.bin")])
def test_what_is_there_already_is_left(name: str, there: str, model: CSSFormer, tmp_path: Path) -> None:
    (tmp_path / there).write_bytes(b"before")
    with pytest.raises(UserError, match=f"{there} is there already; give another output or remove it"):
        export_model(model, tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {there: b"before"}


def test_predict_takes_the_file(exported: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for side in (70, 97):
        Image.fromarray(picture(side, 90)).save(tmp_path / f"{side}.png")
    output, pictures = tmp_path / "labels", sorted(tmp_path.glob("*.png"))
    assert predict_files(str(exported), pictures, output)["pictures"] == 2
    labels = np.asarray(Image.open(output / "labels" / "70.png"))
    assert np.array_equal(labels, Predictor.from_exported(exported)(picture(70, 90)).labels)
    with pytest.raises(UserError, match="on the CPU alone"):
        predict_files(str(exported), pictures, output, device="cuda")
    other = onnx.load(exported)
    other.doc_string = "of another network"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="predictions of another model"):
        predict_files(str(tmp_path / "other.onnx"), pictures, output, skip_existing=True)


@pytest.mark.parametrize(
    ("options", "sides"), [({}, (50, 40)), ({"short_side": 64}, (100, 80)), ({"size": (64, 64)}, (100, 80))]
)
def test_pictures_are_calibrated_with_as_the_file_will_see_them(
    options: dict[str, Any], sides: tuple[int, int], model: CSSFormer, tmp_path: Path
) -> None:
    shown = copy.copy(model)
    shown.metadata = replace(model.metadata, inference={"mode": "whole", "short_side": 40})
    Image.fromarray(picture(100, 80)).save(tmp_path / "photo.png")
    (images,) = quantize.seen(tmp_path, Deployment(shown, uint8=True, **options))
    assert images.dtype == torch.uint8 and images.shape == (1, *sides, 3)


def test_labels_that_differ_on_the_pictures_of_the_calibration_alone_are_found(model: CSSFormer) -> None:
    deployment, calibration = Deployment(model), [torch.rand(1, 3, 70, 70), torch.rand(1, 3, 90, 70)]

    def run(images: np.ndarray) -> list[np.ndarray]:
        (logits,) = deployment(torch.from_numpy(images))
        return [logits.numpy() * (-1 if images.shape[2] == 90 else 1)]

    with torch.inference_mode():
        rows = parity.compare(run, deployment, calibration)
    assert [row["equal"] for row in rows[:3]] == [1.0] * 3 and rows[3]["batch"] == 2
    assert rows[3]["equal"] == pytest.approx(0.5, abs=0.05) and rows[3]["difference"] == pytest.approx(2.0)
    assert not parity.fault(rows[:3], rounded=True)
    assert "on the pictures of the calibration" in parity.fault(rows, rounded=True)
    assert parity.table(rows)[-1][0] == "2 of calibration"


@pytest.mark.parametrize(("values", "count"), [("uint8", 1), ("uint16", 5)])
def test_networks_of_other_channels(values: str, count: int, tmp_path: Path) -> None:
    channels = Channels(values, (100.0,) * count, (50.0,) * count)
    scale = {name: tuple(value / channels.unit for value in getattr(channels, name)) for name in ("mean", "std")}
    model = network(**BASELINE, in_channels=count, **scale)
    model.metadata = replace(model.metadata, channels=channels)
    export_model(model, tmp_path / "model.onnx")
    bands = picture(97, 131)[..., np.arange(count) % 3].astype(values)
    expected, found = Predictor(model, "cpu")(bands), Predictor.from_exported(tmp_path / "model.onnx")(bands)
    assert np.mean(found.labels == expected.labels) > 0.999
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)
    if values == "uint16":
        with pytest.raises(UserError, match="takes 5 channels of uint16; leave out the input uint8"):
            export_model(model, tmp_path / "other.onnx", input="uint8")


class Untraceable(CSSFormer):
    """An operation that no exporter knows."""

    def decode(self, features: list[Tensor]) -> Tensor:
        return torch.linalg.svd(super().decode(features))[0]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_network_that_cannot_be_exported_is_told(suffix: str, tmp_path: Path) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino")
    with pytest.raises(UserError, match="cannot take this network"):
        export_model(Untraceable("test_resnet", **SMALL, **BASELINE).eval(), tmp_path / f"model{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["16", "int8"])
def test_the_cost_of_lower_precision_is_told(precision: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    onnx = pytest.importorskip("onnx")
    found = export_model(network(cia=False, fusion_stride=32), tmp_path / "model.onnx", precision=precision)
    assert not caplog.records
    assert found["megabytes"] == pytest.approx((tmp_path / "model.onnx").stat().st_size / 1e6)
    assert all(0 < row["difference"] < 0.2 and row["equal"] > 0.9 for row in found["parity"])
    kind = onnx.TensorProto.FLOAT16 if precision == "16" else onnx.TensorProto.INT8
    weights = [tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer if len(tensor.dims) > 1]
    assert sum(tensor.data_type == kind for tensor in weights) > 20


def test_calibrated_and_scored(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", **{**SMALL, "num_classes": 3}, cia=False, fusion_stride=32).eval()
    pictures = prepared / "train" / "images"
    options: dict[str, Any] = {"precision": "int8", "calibration": pictures, "data": prepared}
    found = export_model(model, tmp_path / "model.onnx", **options)
    nodes = pytest.importorskip("onnx").load(tmp_path / "model.onnx").graph.node
    rounded = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    of_rounded = {node.op_type for node in nodes if rounded.intersection(node.input[1:2])}
    assert {"Gemm", "MatMul"} & of_rounded and "Conv" not in of_rounded
    assert found["parity"][-1]["height"] is None and found["parity"][-1]["equal"] > 0.97
    assert 0 <= found["miou"] <= 1 and found["network_miou"] == pytest.approx(
        evaluate(Predictor(model, "cpu"), SegmentationFolder(prepared, "val")).scores.miou
    )
    assert abs(found["miou"] - found["network_miou"]) < 0.2
    (prepared / "val" / "none").mkdir()
    with pytest.raises(UserError, match="holds no pictures to calibrate with"):
        export_model(model, tmp_path / "other.onnx", precision="int8", calibration=prepared / "val" / "none")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, "tells no format"),
        ("model.onnx", {"returns": ("labels", "labels")}, "once"),
        ("model.onnx", {"size": (64, 64), "short_side": 64}, "either the size or the short side"),
        ("model.xml", {"precision": "int8"}, "int8 is for ONNX files alone"),
        ("model.onnx", {"calibration": Path("pictures")}, "for int8 alone"),
        ("model.onnx", {"returns": ("labels",), "data": Path("data")}, "can be scored"),
    ],
)
def test_options_that_do_not_go_together(
    name: str, options: dict[str, Any], message: str, model: CSSFormer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export_model(model, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_files_of_others_are_told(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="There is no file" if content is None else "cannot be read"):
        Predictor.from_exported(path)
