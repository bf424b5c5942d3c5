import subprocess
import sys

PROGRAM = """
import sys
import cssformer.export
import numpy as np
from cssformer import CSSFormer, Predictor
from cssformer.weights.bundled import bundled_models

Predictor.from_pretrained(min(bundled_models().values()))(np.zeros((40, 48, 3), np.uint8))
print("torch._dynamo" in sys.modules)

import torch, torchvision
from torchvision.ops.roi_align import is_compile_supported
print(is_compile_supported("cpu"), torch.compiler.disable.__module__)
print(torch._dynamo.utils.counters is not None)
boxes = torch.tensor([[0.0, 0, 0, 3, 3]])
print(float(torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), boxes, 2).mean()))
"""


def test_a_prediction_and_what_exports_leave_the_compiler_out_and_it_comes_whole_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "torch.compiler", "True", "1.0"], done.stderr
