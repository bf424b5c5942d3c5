"""ONNX files with weights and products of 8 bits, by ONNX Runtime's own quantisation."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cssformer.data.files import files_under, is_picture
from cssformer.data.image_io import read_image
from cssformer.data.transforms import resize
from cssformer.export.formats import INPUT
from cssformer.utils.errors import UserError

CALIBRATED = 32
"""How many pictures are looked at, evenly spread over the folder."""


def to_int8(path: Path, uint8: bool, short_side: int | None, calibration: Path | None) -> None:
    """Quantise the file in its place.

    Args:
        path: the ONNX file.
        uint8: whether it takes uint8.
        short_side: pictures of the calibration are resized to it first; None leaves them to the file.
        calibration: a folder of pictures; the ranges of values in convolutions and products are fixed by what these
            show. None: ranges are found anew each time the file runs, for the products alone, as ONNX Runtime advises.

    Raises:
        UserError: the folder holds no pictures, or one cannot be read.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    smaller = path.with_name(f"{path.name}.int8")
    # Products of two computed tensors stay as they are: sampling is made of them.
    constant = {"MatMulConstBOnly": True}
    try:
        if calibration is None:
            quantize_dynamic(path, smaller, ["MatMul", "Gemm"], weight_type=QuantType.QInt8, extra_options=constant)
        else:
            inputs = _inputs(calibration, uint8, short_side)

            class Reader(CalibrationDataReader):
                def get_next(self) -> dict[str, Any] | None:
                    return next(inputs, None)

            quantize_static(
                path,
                smaller,
                Reader(),
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options=constant,
            )
        os.replace(smaller, path)
    finally:
        smaller.unlink(missing_ok=True)


def _inputs(folder: Path, uint8: bool, short_side: int | None) -> Iterator[dict[str, Any]]:
    files = [path for path in files_under(folder) if is_picture(path)]
    if not files:
        raise UserError(f"The folder {folder} holds no pictures to calibrate with.")
    for path in files[:: -(-len(files) // CALIBRATED)]:
        pixels = read_image(path)
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        if short_side is not None:
            height, width = pixels.shape[:2]
            fit = short_side / min(height, width)
            images = resize(images, (max(1, round(height * fit)), max(1, round(width * fit))))
        if uint8:
            images = (255 * images).round().byte().permute(0, 2, 3, 1)
        yield {INPUT: images.numpy()}
