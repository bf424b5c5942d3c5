#!/bin/sh
# transformers 5.24.0 with PyTorch 2.13.0: an EomtForUniversalSegmentation made from a config masks the attention of its
# last blocks by masks that it predicts in between, in eval mode too. Its buffer `attn_mask_probs` begins with ones, its
# code has nothing that lowers it in training, and eval mode looks at it alone. By EoMT's paper these masks fade out in
# training, so that prediction needs none.
#
# Who times the network with random weights, or trains one and predicts, pays for the predictions in between and gets
# other class scores than without. `model.attn_mask_probs.zero_()` gives the network as it is meant to predict.
#
# Source: seen by running it; transformers/models/eomt/modeling_eomt.py, forward and _init_weights.
#
# Output seen (ViT-S, 512x512, 150 classes, 100 queries, eval mode):
#   attn_mask_probs: [1.0, 1.0, 1.0, 1.0]
#   as made: 52.1 G multiply-adds
#   attn_mask_probs zeroed: 37.1 G multiply-adds
#   same class scores: False
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import EomtConfig, EomtForUniversalSegmentation

torch.manual_seed(0)
config = EomtConfig(
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=6,
    num_labels=150,
    num_queries=100,
    image_size=512,
    attn_implementation="eager",
)
network = EomtForUniversalSegmentation(config).eval()
picture = torch.rand(1, 3, 512, 512)


def run():
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        scores = network(picture).class_queries_logits
    return round(counter.get_total_flops() / 2e9, 1), scores


ones = network.attn_mask_probs.tolist()
print("attn_mask_probs:", ones)
made, scores = run()
print("as made:", made, "G multiply-adds")
network.attn_mask_probs.zero_()
zeroed, others = run()
print("attn_mask_probs zeroed:", zeroed, "G multiply-adds")
same = torch.allclose(scores, others, atol=1e-5)
print("same class scores:", same)
raise SystemExit(not (set(ones) == {1.0} and made == 52.1 and zeroed == 37.1 and not same))
PYTHON
