"""The network in a LightningModule of one's own; `cssformer train` is one too, with much more in it."""

import lightning as L
import torch
from scenes import Scenes
from torch import Tensor
from torch.utils.data import DataLoader

from cssformer import CSSFormer, Metadata
from cssformer.metrics import ConfusionMatrix
from cssformer.model import segmentation_loss


class Segmenter(L.LightningModule):
    def __init__(self, classes: tuple[str, ...], colours: tuple[tuple[int, int, int], ...]) -> None:
        super().__init__()
        self.model = CSSFormer("resnet10t", num_classes=len(classes), channels=64, heads=4, points=4)
        self.model.metadata = Metadata(classes, colours)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return segmentation_loss(self.model(images), labels)

    def on_validation_epoch_start(self) -> None:
        self.confusion = ConfusionMatrix(self.model.num_classes, self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        self.confusion.update(self.model(images).argmax(1), labels)

    def on_validation_epoch_end(self) -> None:
        self.log("miou", self.confusion.scores().miou, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(output: str = "models/lightning", pictures: int = 200, size: int = 128, **trainer: object) -> None:
    train, val = Scenes(pictures, size), Scenes(max(2, pictures // 10), size, seed=1)
    task = Segmenter(train.info.classes, train.info.colours)
    loaders = DataLoader(train, batch_size=4, shuffle=True), DataLoader(val, batch_size=4)
    L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **trainer).fit(task, *loaders)
    task.model.save_pretrained(output)


if __name__ == "__main__":
    main()
