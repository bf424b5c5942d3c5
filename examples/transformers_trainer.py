"""The network under transformers' Trainer, and answers like those of its pipeline("image-segmentation")."""

from typing import Any

import torch
from PIL import Image
from scenes import Scenes
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from cssformer import CSSFormer, Metadata, Predictor
from cssformer.model import segmentation_loss


class ForTrainer(nn.Module):
    """The Trainer gives keywords and wants a dictionary with the loss."""

    def __init__(self, model: CSSFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.model(pixel_values)
        logits = output if isinstance(output, Tensor) else output.logits
        return {"loss": segmentation_loss(output, labels), "logits": logits}


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def segments(predictor: Predictor, image: Any) -> list[dict[str, Any]]:
    """What the pipeline gives: a label, a mask and a score for each class that occurs."""
    found = predictor(image)
    answers = []
    for name in found.shares:
        mask = found.labels == predictor.classes.index(name)
        score = float(found.confidence[mask].mean())
        answers.append({"label": name, "mask": Image.fromarray(mask.astype("uint8") * 255), "score": score})
    return answers


def main(output: str = "models/trainer", pictures: int = 200, size: int = 128) -> list[dict[str, Any]]:
    train = Scenes(pictures, size)
    classes = train.info.classes
    model = CSSFormer("resnet10t", num_classes=len(classes), channels=64, heads=4, points=4)
    model.metadata = Metadata(classes, train.info.colours)
    arguments = TrainingArguments(
        output,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        num_train_epochs=1,
        save_strategy="no",
        report_to=[],
    )
    Trainer(ForTrainer(model), arguments, train_dataset=train, data_collator=collate).train()
    model.save_pretrained(output)
    return segments(Predictor(model), train.scenes[0].image)


if __name__ == "__main__":
    for answer in main():
        print(f"{answer['label']}: {answer['score']:.2f}")
