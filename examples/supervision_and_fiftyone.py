"""Predictions drawn by supervision, and put into a FiftyOne data set to look through."""

import sys
from pathlib import Path

import supervision
from PIL import Image

from cssformer import Predictor


def draw(predictor: Predictor, picture: str, output: str) -> None:
    """The picture under the masks of its classes, with their names."""
    prediction = predictor(picture)
    found = prediction.to_supervision()
    palette = supervision.ColorPalette([supervision.Color(*colour) for colour in predictor.colours])
    drawn = supervision.MaskAnnotator(palette).annotate(prediction.image[..., ::-1].copy(), found)  # BGR
    drawn = supervision.LabelAnnotator(palette).annotate(drawn, found, labels=list(found["class_name"]))
    Image.fromarray(drawn[..., ::-1]).save(output)


def look_through(predictor: Predictor, folder: str) -> None:
    """Opens FiftyOne's page with pictures and predictions."""
    import fiftyone

    dataset = fiftyone.Dataset.from_images_dir(folder)
    for sample in dataset:
        prediction = predictor(sample.filepath)
        sample["prediction"] = prediction.to_fiftyone()
        sample.save()
        dataset.mask_targets = {"prediction": prediction.mask_targets}
    dataset.save()
    fiftyone.launch_app(dataset).wait()


if __name__ == "__main__":
    model, source = sys.argv[1:]
    if Path(source).is_dir():
        look_through(Predictor.from_pretrained(model), source)
    else:
        draw(Predictor.from_pretrained(model), source, "drawn.png")
