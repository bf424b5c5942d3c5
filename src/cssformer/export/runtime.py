"""Exported files at work: in ONNX Runtime, OpenVINO and PyTorch."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cssformer.data.files import require_file
from cssformer.utils.errors import UserError
from cssformer.weights.config import check_config
from cssformer.weights.hub import metadata_of

Run: TypeAlias = Callable[[NDArray[Any]], list[NDArray[Any]]]
"""Pictures -> what the file returns, in its order."""

SUFFIXES = {".onnx": "ONNX Runtime", ".pt2": "torch.export", ".xml": "OpenVINO"}
"""Of exported files, and who runs them."""


def open_onnx(path: Path) -> tuple[Run, dict[str, str]]:
    """A session of ONNX Runtime on the CPU, with PyTorch's number of threads, and the file's facts."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return lambda images: session.run(None, {name: images}), session.get_modelmeta().custom_metadata_map


def open_openvino(path: Path, weights: Path | None = None) -> tuple[Run, dict[str, str]]:
    """A model of OpenVINO on the CPU, likewise; in float32, where it would take bfloat16 by itself on some CPUs."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path, weights or path.with_suffix(".bin"))
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", threads)
    facts = {key: str(value.value) for key, value in model.get_rt_info()["cssformer"].items()}
    return lambda images: [np.array(value) for value in compiled(images).values()], facts


def open_pt2(path: Path) -> Run:
    """A program of torch.export. Not for files of strangers."""
    program = torch.export.load(path).module()
    return lambda images: [value.detach().numpy() for value in program(torch.from_numpy(images))]


class ExportedNetwork(nn.Module):
    """An ONNX file or OpenVINO's IR that :func:`cssformer.export.export_model` wrote, in a network's place.

    Args:
        path: a ``.onnx`` file, or an ``.xml`` file with its ``.bin`` beside it.

    Raises:
        UserError: there is no such file, it is damaged or none of ours, or returns no logits of pictures as they are.
        ModuleNotFoundError: the runtime is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        path = Path(path)
        if not path.is_file():
            require_file(path)
            raise UserError(f"There is no file {path}.")
        if path.suffix not in (".onnx", ".xml"):
            raise UserError(f"{path} cannot be run; give a .onnx file, or the .xml file of OpenVINO.")
        try:
            self.run, facts = open_onnx(path) if path.suffix == ".onnx" else open_openvino(path)
            config, returns = json.loads(facts["config"]), json.loads(facts["returns"])
        except ModuleNotFoundError:
            raise
        except Exception as error:  # each runtime has kinds of its own
            raise UserError(f"{path} cannot be read; it is damaged, or not a file of cssformer export.") from error
        check_config(config, str(path))
        if "logits" not in returns or facts["input"] != "float" or facts["seen"] != "as given":
            raise UserError(
                f"{path} does not return logits of pictures as they are; export without --returns, --input, --size and "
                "--short_side."
            )
        # In the state, which tells networks apart.
        weights = path if path.suffix == ".onnx" else path.with_suffix(".bin")
        self.register_buffer("digest", torch.tensor(list(hashlib.sha256(weights.read_bytes()).digest())))
        self.index = returns.index("logits")
        self.num_classes, self.metadata = config["network"]["num_classes"], metadata_of(config)

    def forward_logits(self, images: Tensor) -> Tensor:
        """As a network's: images (B, 3, H, W) in [0, 1] -> logits (B, num_classes, ceil(H/4), ceil(W/4))."""
        return torch.from_numpy(self.run(images.float().numpy())[self.index])
