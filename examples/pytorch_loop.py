"""Train and score in plain PyTorch: the network is an ordinary module."""

import torch
from scenes import Scenes
from torch.utils.data import DataLoader

from cssformer import CSSFormer, Metadata
from cssformer.metrics import ConfusionMatrix
from cssformer.model import segmentation_loss


def main(output: str = "models/loop", pictures: int = 200, size: int = 128) -> float:
    train, val = Scenes(pictures, size), Scenes(max(2, pictures // 10), size, seed=1)
    classes = train.info.classes
    model = CSSFormer("resnet10t", num_classes=len(classes), channels=64, heads=4, points=4)
    model.metadata = Metadata(classes, train.info.colours)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    model.train()
    for images, labels in DataLoader(train, batch_size=4, shuffle=True):
        loss = segmentation_loss(model(images), labels)  # the paper's: the head's and 0.4 of the auxiliary head's
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model.eval()
    confusion = ConfusionMatrix(len(classes))
    with torch.inference_mode():
        for images, labels in DataLoader(val, batch_size=4):
            confusion.update(model(images).argmax(1), labels)
    model.save_pretrained(output)  # `cssformer predict models/loop photo.jpg --output labels` takes it
    return confusion.scores().miou


if __name__ == "__main__":
    print(f"mIoU {main():.3f}")
