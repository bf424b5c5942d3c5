"""What a prediction becomes for those who asked for it: one file of the kind that they name."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from cssformer.data.image_io import write_image
from cssformer.inference.annotations import AnnotationFiles
from cssformer.inference.prediction import Prediction
from cssformer.inference.rasters import as_grey

Save = Literal["labels", "overlay", "confidence", "json", "geojson", "coco"]
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".geojson": "application/geo+json",
}


class Answer(NamedTuple):
    """A file: its bytes, name and media type."""

    content: bytes
    name: str
    media_type: str


def answer(prediction: Prediction, save: Save, picture: str, model: str) -> Answer:
    """A prediction as a file.

    Args:
        prediction: with confidence.
        save: class indices as PNG with a palette, the coloured picture as JPEG, the confidence as grey PNG (255 is
            certain), size and shares as JSON, or what :class:`AnnotationFiles` writes as GeoJSON or COCO.
        picture: the name of the picture's file.
        model: the name of what made the prediction.
    """
    assert prediction.confidence is not None
    stem = Path(picture).stem
    with TemporaryDirectory() as name:
        folder = Path(name)
        if save == "labels":
            prediction.save(folder / f"{stem}.png")
        elif save == "overlay":
            write_image(folder / f"{stem}.jpg", prediction.overlay())
        elif save == "confidence":
            write_image(folder / f"{stem}.png", as_grey(prediction.confidence))
        elif save == "json":
            (folder / f"{stem}.json").write_text(json.dumps(_facts(prediction)) + "\n", encoding="utf-8")
        else:
            look = (prediction.classes, prediction.colours, ["background"], model)
            annotations = AnnotationFiles(folder, [save], *look)
            annotations.add(prediction, Path(picture), Path(stem))
            annotations.close()
        (path,) = (path for path in folder.rglob("*") if path.is_file())
        return Answer(path.read_bytes(), path.name, MEDIA_TYPES[path.suffix])


def _facts(prediction: Prediction) -> dict[str, object]:
    assert prediction.confidence is not None
    height, width = prediction.labels.shape
    confidence = float(prediction.confidence.mean())
    return {"width": width, "height": height, "shares": prediction.shares, "confidence": confidence}
