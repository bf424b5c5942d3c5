#!/bin/sh
# torchmetrics 1.9.0 (torch 2.15.0): segmentation.MeanIoU gives a mean that is not the mean of what it gives by class.
#
# It averages over all pairs of a picture and a class that is in the picture's truth or prediction. A class that is in
# few pictures counts less than one that is in many, and every picture counts alike whatever its pixels. Its
# documentation says of per_class=False: "the metric will compute the mean IoU over all classes". The mIoU of the field,
# which sums pixels over all pictures first, is that of classification.MulticlassJaccardIndex.
#
# Source: seen by running it. torchmetrics/segmentation/mean_iou.py sums the scores and the valid pairs over pictures
# and classes before it divides.
#
# Output seen:
#   MeanIoU 0.7333, by class [0.8333, 1.0, 0.0] of mean 0.6111, MulticlassJaccardIndex 0.6111
#   with the second picture twelve times: MeanIoU 0.9506, by class [0.9744, 1.0, 0.0]
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

truth = torch.tensor([[[0, 0, 0, 1, 1, 1]], [[0, 0, 0, 1, 1, 1]]])
said = torch.tensor([[[0, 0, 2, 1, 1, 1]], [[0, 0, 0, 1, 1, 1]]])


def scores(said, truth):
    by_class = MeanIoU(3, input_format="index", per_class=True)(said, truth)
    return MeanIoU(3, input_format="index")(said, truth).item(), by_class


whole, by_class = scores(said, truth)
mean = by_class.mean().item()
jaccard = MulticlassJaccardIndex(3)(said, truth).item()
shown = [round(value, 4) for value in by_class.tolist()]
print(f"MeanIoU {whole:.4f}, by class {shown} of mean {mean:.4f}, MulticlassJaccardIndex {jaccard:.4f}")
many = [torch.cat([each[:1]] + [each[1:]] * 12) for each in (said, truth)]
again, by_class = scores(*many)
shown = [round(value, 4) for value in by_class.tolist()]
print(f"with the second picture twelve times: MeanIoU {again:.4f}, by class {shown}")
seen = abs(whole - 11 / 15) < 1e-4 and abs(mean - 11 / 18) < 1e-4 and abs(again - mean) > 0.1
raise SystemExit(not seen)
PYTHON
