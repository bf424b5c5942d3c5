"""Make a run's network a bundled model: half the bytes, the run's scores, a card that tells them.

    python scripts/bundle.py runs/animals animals --licence apache-2.0

The card, src/cssformer/bundled/NAME/README.md, is written by hand, but for what stands between its lines
``<!-- scores -->`` and ``<!-- end -->``.
"""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cssformer import CSSFormer, Predictor
from cssformer.metrics.confusion import percent
from cssformer.weights.bundled import BUNDLED
from cssformer.weights.run_files import SCORES

PICTURES = 20


def bundle(run: Path, name: str, licence: str, folder: Path) -> None:
    """Write weights, config, scores and the card's scores into a folder that holds the card."""
    model = CSSFormer.from_pretrained(run)
    model.metadata = replace(model.metadata, backbone_licence=licence)
    scores = json.loads((run / SCORES).read_text(encoding="utf-8"))
    with TemporaryDirectory() as tried:
        model.save_pretrained(tried, half=True)
        require_same_labels(run, Path(tried), Path(scores["data"]) / scores["split"] / "images")
    model.save_pretrained(folder, half=True)
    scores |= {"model": name, "data": f"data/{Path(scores['data']).name}"}
    (folder / SCORES).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    text, count = re.subn(
        r"(<!-- scores -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{table(scores)}\n{found[2]}",
        card.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert count == 1, f"{card} has no place for the scores"
    card.write_text(text, encoding="utf-8")


def require_same_labels(run: Path, folder: Path, pictures: Path) -> None:
    """The run was scored in float32: the stored network must say the same, on some pictures."""
    predictors = [Predictor.from_pretrained(source, "cpu") for source in (run, folder)]
    same = [
        np.mean(np.equal(*(predictor(picture, confidence=False).labels for predictor in predictors)))
        for picture in sorted(pictures.iterdir())[:PICTURES]
    ]
    print(f"{len(same)} pictures: {np.mean(same):.4%} of the labels stay")
    assert np.mean(same) > 0.999, "float16 changes the labels"


def table(scores: dict) -> str:
    low, high = (percent(value) for value in scores["miou_interval"])
    heading = f"{percent(scores['miou'])} % mIoU (95 %: {low} to {high}) on {scores['pictures']} pictures"
    rows = [
        f"| {name} | {percent(found['iou'])} | {percent(found['boundary_iou'])} |"
        for name, found in scores["classes"].items()
    ]
    boundary = percent(scores["mean_boundary_iou"])
    mean = f"| **mean** | **{percent(scores['miou'])}** | **{boundary}** |"
    return "\n".join([f"{heading}:\n", "| class | IoU % | Boundary IoU % |", "|---|---|---|", *rows, mean])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--licence", required=True, help="of the backbone's first weights")
    given = parser.parse_args()
    bundle(given.run, given.name, given.licence, BUNDLED / given.name)
