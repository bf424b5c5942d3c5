"""Labels that a network contradicts with confidence: where to look for mistakes of annotation."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.data.bands import read_pixels
from cssformer.data.channels import Pixels, rgb_view
from cssformer.data.dataset import SPLITS, label_table, to_classes
from cssformer.data.files import read_bytes
from cssformer.data.image_io import read_ids, write_image
from cssformer.data.multilabel import require_single_label
from cssformer.inference import Predictor
from cssformer.inference.views import telling_of
from cssformer.metrics.evaluate import require_fitting
from cssformer.metrics.report import NAMED, TILE, tile
from cssformer.utils.atomic import atomic_csv
from cssformer.utils.console import progress
from cssformer.utils.parallel import ahead
from cssformer.visualize.drawing import WRONG, Picture, colourise, legend, sheet

TABLE, SHEET = "suspects.csv", "suspects.png"
SHOWN = 24
"""Pictures on the sheet."""
_BOX = ("left", "top", "width", "height")
# Of a picture's shorter side: thinner contradictions are those of any outline.
_THICKNESS = 0.02


@dataclass(frozen=True)
class SuspectRegion:
    """A connected region of one class in the label that the network says is another one.

    Attributes:
        labelled, predicted: class indices.
        box: left, top, width and height in pixels.
        pixels: how many.
        confidence: the mean probability of the predicted class, from 0 to 1.
        score: the sum of these probabilities over the picture's labelled pixels, from 0 to 1.
    """

    labelled: int
    predicted: int
    box: tuple[int, int, int, int]
    pixels: int
    confidence: float
    score: float


@dataclass(frozen=True)
class Suspect:
    """A picture whose label the network contradicts.

    Attributes:
        image, label: the files.
        regions: those of highest score first.
    """

    image: Path
    label: Path
    regions: tuple[SuspectRegion, ...]

    @property
    def score(self) -> float:
        """The sum of its regions' scores, from 0 to 1."""
        return sum(region.score for region in self.regions)

    def caption(self, info: DatasetInfo) -> str:
        """The picture, and what is said of its first region."""
        first = self.regions[0]
        return (
            f"{self.image}: {self.score:.1%}; labelled {info.classes[first.labelled]}, "
            f"predicted {info.classes[first.predicted]} ({first.confidence:.0%})"
        )

    def as_dict(self, info: DatasetInfo) -> dict[str, Any]:
        """For JSON."""
        regions = [
            {**asdict(each), "labelled": info.classes[each.labelled], "predicted": info.classes[each.predicted]}
            for each in self.regions
        ]
        return {"image": str(self.image), "label": str(self.label), "score": self.score, "regions": regions}


def find_suspects(predictor: Predictor, folder: str | Path) -> list[Suspect]:
    """The pictures of a prepared folder whose labels the network contradicts, the most contradicted first.

    A network contradicts the mistakes that it has not learned by heart: those in pictures that it was not trained on,
    or not for long.

    Raises:
        UserError: a picture or label cannot be read, or the network has other classes or channels.
    """
    found = []
    for split in (each for each in SPLITS if (Path(folder) / each / "labels").is_dir()):
        dataset = SegmentationFolder(folder, split)
        require_fitting(predictor.network, dataset.info)
        require_single_label(dataset.info.multilabel, "The search for labels that a model contradicts")
        assert dataset.labels is not None
        samples = ahead(dataset.__getitem__, len(dataset), lambda sample: 2 * sample.image.nbytes)
        for name, image, label in progress(f"Comparing {split}", samples, total=len(dataset)):
            with telling_of(name):
                prediction = predictor(Pixels(image, None))
            assert label is not None and prediction.confidence is not None
            regions = contradictions(label, prediction.labels, prediction.confidence)
            if regions:
                found.append(Suspect(dataset.images[name], dataset.labels[name], tuple(regions)))
    return sorted(found, key=lambda suspect: -suspect.score)


def contradictions(
    label: NDArray[np.int32], predicted: NDArray[np.int32], confidence: NDArray[np.float32]
) -> list[SuspectRegion]:
    """The regions where a prediction differs from a label (both (H, W)), the highest score first.

    What is thinner than a fiftieth of the picture's shorter side is left out: no two people draw the same outline.
    """
    scored = label != IGNORE
    wrong = (scored & (label != predicted)).astype(np.uint8)
    side = max(3, round(_THICKNESS * min(label.shape)))
    wrong = cv2.morphologyEx(wrong, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    if not wrong.any():
        return []
    pairs = np.where(wrong > 0, label.astype(np.int64) << 16 | predicted, -1)
    regions = []
    for pair in np.unique(pairs[pairs >= 0]).tolist():
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats((pairs == pair).astype(np.uint8))
        sums = np.bincount(numbers.ravel(), confidence.ravel(), count)
        for number in range(1, count):
            *box, pixels = boxes[number].tolist()
            if min(box[2:]) >= side:
                total = float(sums[number])
                share = total / int(scored.sum())
                region = SuspectRegion(pair >> 16, pair & 0xFFFF, tuple(box), pixels, total / pixels, share)
                regions.append(region)
    return sorted(regions, key=lambda region: -region.score)


def suspect_tiles(suspect: Suspect, predictor: Predictor, info: DatasetInfo) -> list[Picture]:
    """Picture, label and prediction at a tile's size, the regions framed, RGB (height, width, 3) each."""
    pixels, missing = picture = read_pixels(suspect.image, info.channels)[0]
    label = to_classes(read_ids(read_bytes(suspect.label), suspect.label), label_table(info), suspect.label)
    view, found = rgb_view(pixels, info.channels, missing), predictor(picture).labels
    shown = (view, colourise(label, info.colours), colourise(found, info.colours))
    # Frames are as wide on the tile whatever the picture's size.
    width = max(1, round(2 * label.shape[1] / TILE))
    tiles = []
    for number, each in enumerate(shown):
        framed = np.ascontiguousarray(each).copy()
        for left, top, across, down in (region.box for region in suspect.regions):
            cv2.rectangle(framed, (left, top), (left + across - 1, top + down - 1), WRONG, width)
        tiles.append(tile(framed, smooth=number == 0))
    return tiles


def write_suspects(
    suspects: Sequence[Suspect], tiles: Sequence[Sequence[Picture]], info: DatasetInfo, folder: Path
) -> None:
    """Write ``suspects.csv``, a row for each region, and ``suspects.png``, the first pictures, into ``folder``.

    Args:
        suspects: the most contradicted first.
        tiles: of the first of them, of :func:`suspect_tiles`.
        info: the classes.
        folder: made if it is missing.

    Raises:
        UserError: the folder cannot be written.
    """
    rows = [(each, region) for each in suspects for region in each.regions]
    rows.sort(key=lambda row: -row[1].score)
    with atomic_csv(folder / TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "labelled", "predicted", "confidence", "score", "pixels", *_BOX))
        for each, region in rows:
            names = (info.classes[region.labelled], info.classes[region.predicted])
            numbers = (f"{region.confidence:.4f}", f"{region.score:.6f}", region.pixels, *region.box)
            writer.writerow((each.image, each.label, *names, *numbers))
    if tiles:
        shown = [region for each in suspects[: len(tiles)] for region in each.regions]
        classes = sorted({index for each in shown for index in (each.labelled, each.predicted)})
        entries = [(info.classes[index], info.colours[index]) for index in classes[:NAMED]]
        captions = [each.caption(info) for each in suspects[: len(tiles)]]
        heads = ("picture", "label", "prediction")
        write_image(folder / SHEET, sheet(tiles, heads, captions, partial(legend, entries)))
