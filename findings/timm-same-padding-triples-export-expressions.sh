#!/bin/sh
# timm 1.0.31 with PyTorch 2.15.0: `torch.export` with free height and width of timm's Conv2dSame, the convolution of its
# `tf_` backbones. The padding of each stride-2 layer is computed from the sides of its input, so the exported side of
# the output is a formula that holds the formula of the layer before three times: its text triples with each layer, and
# so does the time. A convolution with constant padding of the same shape keeps its formula short.
#
# Who exports a segmentation network on tf_efficientnet or tf_mobilenetv3 with dynamic sizes waits without a message,
# five strides deep. With fixed sizes it is quick; where pictures are padded to a multiple of 32 before the backbone,
# the padding is a constant, (kernel - stride) split with the smaller half first, and the layer may be replaced.
#
# Source: seen by running it; timm/layers/padding.py, get_same_padding.
#
# Output seen (letters of the formula of the output's height after 1, 2 and 3 layers):
#   Conv2dSame: [73, 260, 847]
#   Conv2d, constant padding: [20, 20, 20]
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchvision==0.29.2 timm==1.0.31
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from timm.layers import Conv2dSame
from torch import nn


def letters(layer):
    found = []
    for depth in (1, 2, 3):
        network = nn.Sequential(*(layer() for _ in range(depth))).eval()
        free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        program = torch.export.export(network, (torch.rand(1, 3, 256, 256),), dynamic_shapes=(free,))
        (result,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
        found.append(len(str(result.meta["val"].shape[2])))
    return found


same = letters(lambda: Conv2dSame(3, 3, 3, stride=2))
constant = letters(lambda: nn.Conv2d(3, 3, 3, stride=2, padding=1))
print("Conv2dSame:", same)
print("Conv2d, constant padding:", constant)
grows = all(after > 2.5 * before for before, after in zip(same, same[1:]))
raise SystemExit(not (grows and max(constant) < 100))
PYTHON
