"""The actors of a Ray cluster share the pictures.

python examples/predict_ray.py runs/mine pictures labels
"""

import sys
from pathlib import Path

import ray.data

from cssformer.inference.ray import predict_dataset


def main(model: str, pictures: str, output: str, workers: int = 2, gpus: float = 0) -> list[dict[str, str]]:
    paths = sorted(path for path in Path(pictures).rglob("*") if path.suffix in (".jpg", ".png"))
    rows = [{"path": str(path), "place": str(path.relative_to(pictures).with_suffix(""))} for path in paths]
    dataset = ray.data.from_items(rows)
    return predict_dataset(dataset, model, output=output, workers=workers, gpus=gpus).take_all()


if __name__ == "__main__":
    for row in main(*sys.argv[1:]):
        print(row["labels"], row["error"])
