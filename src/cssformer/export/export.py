"""Export a trained network, prove the file, and only then give it its name."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cssformer.data import SegmentationFolder
from cssformer.export import formats, parity, quantize
from cssformer.export.formats import SamplingForm
from cssformer.export.graph import Deployment, Returned
from cssformer.export.runtime import SUFFIXES, open_onnx, open_openvino, open_pt2
from cssformer.inference import Predictor
from cssformer.inference.views import Options
from cssformer.metrics import evaluate
from cssformer.model import SegmentationNetwork
from cssformer.utils.atomic import atomic_write, require_writable
from cssformer.utils.errors import UserError

Precision: TypeAlias = Literal["32", "16", "int8"]


def export_model(
    model: str | Path | SegmentationNetwork,
    output: str | Path,
    *,
    returns: Sequence[Returned] = ("logits",),
    input: Literal["float", "uint8"] = "float",
    size: tuple[int, int] | None = None,
    short_side: int | None = None,
    sampling: SamplingForm = "gather",
    precision: Precision = "32",
    calibration: Path | None = None,
    data: Path | None = None,
) -> dict[str, Any]:
    """Write a network as a file for other runtimes, after that file was run beside the network.

    Batch, height and width are free. The file is run at three sizes other than the traced one. In float32 its values
    may differ from the network's by a thousandth of the largest, and 99.9 % of the labels must be equal; in lower
    precision 90 %, but 97 % on the pictures of the calibration. Otherwise no file is left.

    Args:
        model: a run or model folder, a bundled model, a Hugging Face model id, or a network.
        output: the file, which must not be there yet; .onnx is ONNX, .pt2 a program of torch.export, .xml OpenVINO's
            IR (with a .bin beside it).
        returns: what the file returns, see :class:`cssformer.export.graph.Deployment`.
        input: "float" takes float32 (B, 3, H, W) in [0, 1], "uint8" takes uint8 (B, H, W, 3); both RGB, or a network's
            other channels, see :class:`cssformer.export.graph.Deployment`.
        size: the file resizes pictures to this height and width for the network.
        short_side: the file resizes pictures until their shorter side has so many pixels.
        sampling: "gather" is in every runtime, "gridsample" is the operator that some runtimes compute wrongly.
        precision: of weights and arithmetic, 16 is float16; in OpenVINO's IR it is that of the weights alone.
        calibration: a folder of pictures for int8 with fixed ranges; without it ranges are found as the file runs.
        data: a prepared folder on whose split "val" the file and the network are scored.

    Returns:
        For JSON: "output", "megabytes", "runtime", "parity" (rows of :func:`cssformer.export.parity.compare`), "note"
        (what whoever runs the file must do beside, or None), and with data "miou" and "network_miou" (from 0 to 1).

    Raises:
        UserError: there is no such model, the options do not go together, the file cannot be written, or it does not
            compute what the network computes.
        ModuleNotFoundError: a package of the extra ``export`` is not installed.
    """
    output = Path(output)
    runtime = SUFFIXES.get(output.suffix)
    if runtime is None:
        raise UserError(f"The name {output} tells no format; end it in {', '.join(SUFFIXES)}.")
    files = [output, output.with_suffix(".bin")] if output.suffix == ".xml" else [output]
    if there := next((path for path in files if path.exists()), None):
        raise UserError(f"{there} is there already; give another output or remove it.")
    if len(set(returns)) < len(returns) or not returns:
        raise UserError("Give each value of returns once, and one at least.")
    if size is not None and short_side is not None:
        raise UserError("Give either the size or the short side that the file resizes to.")
    if precision == "int8" and output.suffix != ".onnx":
        raise UserError(f"int8 is for ONNX files alone; end the name {output} in .onnx or take another precision.")
    if calibration is not None and precision != "int8":
        raise UserError("Pictures for calibration are for int8 alone; leave them out or take the precision int8.")
    as_given = input == "float" and size is None and short_side is None
    if data is not None and (not as_given or "logits" not in returns or output.suffix == ".pt2"):
        raise UserError(
            "Only a .onnx or .xml file that returns logits of pictures as they are can be scored; leave out data, or "
            "returns, input, size and short_side."
        )
    require_writable(output)
    scored = None if data is None else SegmentationFolder(data, "val")
    network = model if isinstance(model, SegmentationNetwork) else SegmentationNetwork.from_pretrained(model)
    if network.metadata.multilabel and {"labels", "confidence"} & set(returns):
        raise UserError("A multi-label network has no single label; let the file return logits or probabilities.")
    if input == "uint8" and (channels := network.metadata.channels) and channels.values != "uint8":
        raise UserError(f"This network takes {channels}; leave out the input uint8.")
    network = copy.deepcopy(network).cpu().eval()
    arguments = (returns, input == "uint8", size, short_side)
    deployment = Deployment(network, *arguments).eval()
    told = formats.facts(deployment, sampling, precision)
    traced = deployment
    if precision == "16" and output.suffix != ".xml":
        traced = Deployment(copy.deepcopy(network).half(), *arguments).eval()
    calibrated = [] if calibration is None else quantize.seen(calibration, deployment)
    bin_file = atomic_write(output.with_suffix(".bin")) if output.suffix == ".xml" else nullcontext()
    with atomic_write(output) as path, bin_file as weights:
        try:
            formats.write(traced, path, weights, sampling, precision == "16", told)
            if precision == "int8":
                quantize.to_int8(path, calibrated)
            run = {
                ".onnx": lambda: open_onnx(path)[0],
                ".pt2": lambda: open_pt2(path),
                ".xml": lambda: open_openvino(path, weights)[0],
            }[output.suffix]()
            rows = parity.compare(run, deployment, calibrated)
        except (UserError, OSError, ModuleNotFoundError):
            raise
        except Exception as error:  # exporters and runtimes have kinds of their own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{output} was not written: {runtime} cannot take this network ({reason}).") from error
        if fault := parity.fault(rows, precision != "32"):
            raise UserError(f"{output} was not written: run by {runtime}, {fault}.")
        megabytes = sum(file.stat().st_size for file in (path, weights) if file is not None) / 1e6
    note = _left_to_do(network.metadata.inference, resized=size is not None or short_side is not None)
    found = {"output": str(output), "megabytes": megabytes, "runtime": runtime, "parity": rows, "note": note}
    return found if scored is None else {**found, **_scores(output, network, scored)}


def _left_to_do(inference: dict[str, Any], resized: bool) -> str | None:
    """What `predict` does for this network, and the file does not."""
    looks = Options(**inference)
    if (side := looks.short_side) is not None and not resized:
        return (
            f"the network was trained for pictures with a shorter side of {side} pixels, and the file takes them as "
            f"they are: resize them before, or export with --short_side {side}."
        )
    if looks.mode == "slide":
        window = "x".join(map(str, looks.window[0]))
        return f"the network was trained for a sliding window of {window}; larger pictures need windows of that size."
    return None


def _scores(output: Path, network: SegmentationNetwork, data: SegmentationFolder) -> dict[str, float | None]:
    both = {"miou": Predictor.from_exported(output), "network_miou": Predictor(network, "cpu")}
    return {name: evaluate(predictor, data).scores.miou for name, predictor in both.items()}
