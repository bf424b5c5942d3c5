"""Writing a traced network as ONNX, a torch.export program or OpenVINO's IR, with what its users must know."""

import io
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import cssformer
from cssformer.export.graph import AnySize, Deployment, rewritten
from cssformer.export.loops import write_loops
from cssformer.inference.labels import STRIDE
from cssformer.ops import use_backend
from cssformer.ops.runs import as_loops
from cssformer.utils.atomic import TEMPORARY

SamplingForm: TypeAlias = Literal["gather", "gridsample"]
BACKENDS = {"gather": "gather", "gridsample": "reference"}
"""Who computes the sampling while it is traced."""

OPSET = 17
"""Of ONNX: the first one with LayerNormalization, so that old runtimes read the files."""

INPUT = "images"
# Of no special form: sides that 32 divides would hide a padding that is wrong.
TRACED = (2, 100, 131)
"""Pictures, height and width that are traced."""

FACTS = "cssformer.json"
"""What a .pt2 file calls its facts, which are metadata_props in ONNX and rt_info in OpenVINO."""


def write(
    deployment: Deployment, path: Path, weights: Path | None, sampling: SamplingForm, half: bool, facts: dict[str, str]
) -> None:
    """Trace and write the file; its suffix chooses the format.

    Args:
        deployment: what is written.
        path: a .onnx, .pt2 or .xml file.
        weights: the .bin file of the .xml.
        sampling: the form of MSFE's and CSF's sampling.
        half: OpenVINO keeps its weights in float16.
        facts: kept in the file, see :func:`facts`.
    """
    deployment, images = rewritten(deployment), pictures(deployment, *TRACED)
    with torch.no_grad(), use_backend(BACKENDS[sampling]), AnySize(), warnings.catch_warnings():
        # The tracer warns of every size it meets; whether it took them well is proved by running the file.
        warnings.simplefilter("ignore")
        if weights is not None:
            _write_openvino(deployment, images, path, weights, half, facts)
        elif path.suffix == ".pt2":
            _write_pt2(deployment, images, path, facts)
        else:
            _write_onnx(deployment, images, path, facts)


def facts(deployment: Deployment, sampling: SamplingForm, precision: str) -> dict[str, str]:
    """Names and texts that a file keeps: what it takes and returns, and the whole config of the network."""
    network, size, short_side = deployment.network, deployment.size, deployment.short_side
    return {
        "cssformer": cssformer.__version__,
        "backbone_licence": json.dumps(network.metadata.backbone_licence),
        "classes": json.dumps(network.metadata.classes),
        "colours": json.dumps(network.metadata.colours),
        "mean": json.dumps(network.backbone.mean),
        "std": json.dumps(network.backbone.std),
        "normalised": "inside",
        "input": "uint8" if deployment.uint8 else "float",
        "returns": json.dumps(list(deployment.returns)),
        "seen": f"{size[0]}x{size[1]}" if size else f"short side {short_side}" if short_side else "as given",
        "sampling": sampling,
        "precision": precision,
        "config": json.dumps(network.saved_config()),
    }


def pictures(deployment: Deployment, batch: int, height: int, width: int) -> Tensor:
    """The same pictures every time: clouds of two sizes, of colours or, for other channels, around their mean."""
    backbone, channels = deployment.network.backbone, deployment.network.metadata.channels
    generator = torch.Generator().manual_seed(height)
    shape = (batch, len(backbone.mean))
    large, small = (
        F.interpolate(torch.rand(*shape, cells, cells, generator=generator), (height, width), mode="bilinear")
        for cells in (4, 32)
    )
    images = 0.6 * large + 0.4 * small
    if channels is not None and channels.unit == 1:
        images = backbone.pixel_mean + (4 * images - 2) * backbone.pixel_std
    return deployment.as_given(images)


def _axes(deployment: Deployment) -> dict[int, str]:
    return dict(zip((0, 1, 2) if deployment.uint8 else (0, 2, 3), ("batch", "height", "width"), strict=True))


def _write_onnx(deployment: Deployment, images: Tensor, path: Path, facts: dict[str, str]) -> None:
    import onnx

    # The exporter over torch.export takes minutes for sizes that are symbols; this one takes seconds.
    with as_loops() as bodies:
        torch.onnx.export(
            deployment,
            (images,),
            path,
            dynamo=False,
            input_names=[INPUT],
            output_names=list(deployment.returns),
            dynamic_axes={INPUT: _axes(deployment)},
            opset_version=OPSET,
        )
    model = onnx.load(path)
    write_loops(model, bodies, OPSET)
    onnx.helper.set_model_props(model, facts)
    for value, name in zip(model.graph.output, deployment.returns, strict=True):
        first, *classes, down, across = value.type.tensor_type.shape.dim
        first.dim_param = "batch"
        down.dim_param, across.dim_param = ("rows", "columns") if name == "logits" else ("height", "width")
        for dimension in classes:
            dimension.dim_value = deployment.network.num_classes
    onnx.save(model, path)


def _write_pt2(deployment: Deployment, images: Tensor, path: Path, facts: dict[str, str]) -> None:
    # A single row or column of logits would be another program.
    sides = {
        axis: torch.export.Dim(name, min=1 if name == "batch" else STRIDE + 1, max=16384)
        for axis, name in _axes(deployment).items()
    }
    program = torch.export.export(deployment, (images,), dynamic_shapes=(sides,))
    # By way of memory, because torch aborts the process on a full disk.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts)})
    path.write_bytes(buffer.getbuffer())


def _write_openvino(
    deployment: Deployment, images: Tensor, path: Path, weights: Path, half: bool, facts: dict[str, str]
) -> None:
    import openvino

    # Beside the file, to be renamed; whatever fails, nothing of it stays.
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder:
        onnx, whole = Path(folder, "model.onnx"), Path(folder, "model.xml")
        _write_onnx(deployment, images, onnx, {})
        # Not convert_model, which takes twice the time and tells its maker of each call.
        model = openvino.Core().read_model(onnx)
        for name, value in facts.items():
            model.set_rt_info(value, ["cssformer", name])
        try:
            openvino.save_model(model, whole, compress_to_fp16=half)
        except RuntimeError as error:
            # It tells a full disk as "iostream error".
            raise OSError(f"the disk may be full (OpenVINO: {error})") from error
        # Which keeps the ONNX file and its weights mapped.
        del model
        os.replace(whole, path)
        os.replace(whole.with_suffix(".bin"), weights)
