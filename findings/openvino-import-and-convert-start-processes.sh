#!/bin/sh
# OpenVINO 2026.4.1 (openvino-telemetry 2025.2.0) with onnx 1.23.2, on Linux: `import openvino` starts a process, and
# `openvino.convert_model` of an ONNX file six more, each a fork of the program that calls it; each sends an event to
# OpenVINO's telemetry. `openvino.Core().read_model` reads the same file into a model that computes the same, and starts
# none.
#
# Who exports or tests many networks, counts processes, or runs threads when it converts, does not expect forks here.
#
# Source: seen by running it; that OpenVINO sends telemetry, and how one opts out (opt_in_out --opt_out), stands in its
# documentation. Nothing need be reached: without a network the processes are started too.
#
# Output seen:
#   import openvino: processes started
#   Core().read_model: none
#   convert_model: processes started
#   both compute the same
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 openvino==2026.4.1 openvino-telemetry==2025.2.0
cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import multiprocessing

started: list[str] = []
start = multiprocessing.Process.start


def counted(process: multiprocessing.Process) -> None:
    started.append(process.name)
    start(process)


multiprocessing.Process.start = counted

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

changed = False


def tell(what: str, expected: bool) -> None:
    global changed
    print(f"{what}: {'processes started' if started else 'none'}")
    changed |= bool(started) != expected
    started.clear()


ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "relu.onnx")
started.clear()

import openvino  # noqa: E402

tell("import openvino", True)
read = openvino.Core().read_model("relu.onnx")
tell("Core().read_model", False)
converted = openvino.convert_model("relu.onnx")
tell("convert_model", True)
values = np.array([[-1, 2, 3]], np.float32)
found = [openvino.compile_model(model, "CPU")(values)[0] for model in (read, converted)]
same = np.array_equal(*found)
print("both compute the same" if same else "they differ")
raise SystemExit(changed or not same)
PYTHON
