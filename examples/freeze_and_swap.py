"""Habits from segmentation-models-pytorch: a frozen encoder, and a new classifier for other classes.

There `model.encoder` and `model.segmentation_head`; here `model.backbone` and `model.head`.

    python examples/freeze_and_swap.py runs/mine
"""

import sys

import torch
from scenes import Scenes
from torch.utils.data import DataLoader

from cssformer import CSSFormer, Metadata
from cssformer.model import segmentation_loss


def main(source: str, output: str = "models/swapped", pictures: int = 100, size: int = 128) -> CSSFormer:
    """Start from a saved network, and learn the classes of the generated scenes."""
    data = Scenes(pictures, size)
    # Keeps all weights but those of the classifiers.
    model = CSSFormer.from_pretrained(source, num_classes=len(data.info.classes))
    model.metadata = Metadata(data.info.classes, data.info.colours)

    model.backbone.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    model.train()
    model.backbone.eval()  # its BatchNorms keep their statistics
    for images, labels in DataLoader(data, batch_size=4, shuffle=True):
        loss = segmentation_loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(output)
    return model


if __name__ == "__main__":
    main(*sys.argv[1:])
