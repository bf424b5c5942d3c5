#!/bin/sh
# onnxruntime 1.32.0 (onnx 1.23.2, numpy 2.4.6): quantize_static with CalibrationMethod.Percentile or Entropy takes only
# calibration inputs of one size; with pictures of different sizes through a model of free height and width it raises
# "setting an array element with a sequence ... inhomogeneous shape". MinMax, the default, takes them.
#
# Segmentation networks are calibrated with whole photographs, which differ in size: crop or resize them to one size, or
# stay with MinMax.
#
# Source: seen by running it; onnxruntime/quantization/calibrate.py, HistogramCollector, stacks all outputs of a tensor.
#
# Output seen:
#   MinMax, one size: quantised
#   MinMax, two sizes: quantised
#   Percentile, one size: quantised
#   Percentile, two sizes: ValueError
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"])],
    "conv",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, "p", "q"])],
    [numpy_helper.from_array(weights, "w")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")


class Pictures(CalibrationDataReader):
    def __init__(self, sizes):
        random = np.random.default_rng(1)
        self.left = [{"x": random.normal(size=(1, 3, *size)).astype(np.float32)} for size in sizes]

    def get_next(self):
        return self.left.pop(0) if self.left else None


changed = False
for method in ("MinMax", "Percentile"):
    for name, sizes in (("one size", [(8, 9)] * 2), ("two sizes", [(8, 9), (11, 7)])):
        try:
            chosen = getattr(CalibrationMethod, method)
            quantize_static("model.onnx", "quantised.onnx", Pictures(sizes), calibrate_method=chosen)
            found = "quantised"
        except Exception as error:
            found = type(error).__name__
        print(f"{method}, {name}: {found}")
        changed |= found != ("ValueError" if (method, name) == ("Percentile", "two sizes") else "quantised")
raise SystemExit(changed)
PYTHON
