"""ONNX files with weights and products of 8 bits, by ONNX Runtime's own quantisation."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cssformer.data.bands import read_pixels
from cssformer.data.files import files_under, is_picture
from cssformer.data.transforms import resize
from cssformer.export.formats import INPUT
from cssformer.export.graph import Deployment
from cssformer.inference.views import as_input, seen_sizes
from cssformer.utils.errors import UserError

CALIBRATED = 32
"""How many pictures are looked at, evenly spread over the folder."""


def to_int8(path: Path, calibration: Sequence[Tensor]) -> None:
    """Quantise the linear layers of the file in its place; with convolutions it would lose a tenth of its mIoU.

    Args:
        path: the ONNX file.
        calibration: what the file is given; the ranges of values are fixed by what these show. Without any, ranges are
            found anew each time the file runs.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    smaller = path.with_name(f"{path.name}.int8")
    # Products of two computed tensors stay as they are: sampling is made of them.
    constant = {"MatMulConstBOnly": True}
    # It asks for a preparation that the file does not need, by the root logger.
    told = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        if not calibration:
            quantize_dynamic(path, smaller, ["MatMul", "Gemm"], weight_type=QuantType.QInt8, extra_options=constant)
        else:
            inputs = iter(calibration)

            class Reader(CalibrationDataReader):
                def get_next(self) -> dict[str, Any] | None:
                    return next(({INPUT: images.numpy()} for images in inputs), None)

            quantize_static(
                path,
                smaller,
                Reader(),
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options=constant,
            )
        os.replace(smaller, path)
    finally:
        logging.disable(told)
        smaller.unlink(missing_ok=True)


def seen(folder: Path, deployment: Deployment) -> list[Tensor]:
    """Pictures of a folder, ``CALIBRATED`` at most, as an exported file will be given them.

    Raises:
        UserError: the folder holds no pictures, or one cannot be read.
    """
    files = [path for path in files_under(folder) if is_picture(path)]
    if not files:
        raise UserError(f"The folder {folder} holds no pictures to calibrate with.")
    # Pictures come as they are where the file itself resizes, else as `predict` resizes them.
    metadata = deployment.network.metadata
    short_side = None if deployment.size or deployment.short_side else metadata.inference.get("short_side")
    found = []
    for path in files[:: -(-len(files) // CALIBRATED)]:
        images = as_input(torch.from_numpy(read_pixels(path, metadata.channels)[0].pixels).permute(2, 0, 1)[None])
        if short_side is not None:
            height, width = images.shape[2:]
            images = resize(images, seen_sizes(height, width, (1.0,), short_side)[0])
        found.append(deployment.as_given(images))
    return found
