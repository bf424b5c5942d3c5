"""The network knows nothing of what makes it fast: ``accelerate`` can be deleted, and everything works."""

import ast
import json
from pathlib import Path

import cssformer
from tests.model.copies import copied, run

PACKAGE = Path(cssformer.__file__).parent
PROGRAM = """
import json
import numpy as np
import torch
from cssformer import CSSFormer, Predictor
from cssformer.data.synthetic import SyntheticScenes
from cssformer.inference import explain
from cssformer.metrics import evaluate
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.train import train

scenes = SyntheticScenes(count=2, size=(64, 96))
torch.manual_seed(0)
model = CSSFormer("test_resnet", len(scenes.info.classes), channels=8, heads=2, points=1)
model(torch.rand(1, 3, 64, 96)).logits.sum().backward()
predictor, picture = Predictor(model, "cpu"), scenes[0].image
found = {"swapped": type(predictor.model.msfe[0]).__name__, "labels": predictor(picture).labels.tolist()}
found["confusion"] = evaluate(predictor, scenes).scores.as_dict()
found["maps"] = [sampled.weights.round(4).tolist() for sampled in explain(predictor, picture, 5, 60).maps]
recipe = Recipe(
    output=f"{folder}/run",
    model=ModelConfig(backbone="test_resnet", channels=8, heads=2, points=1),
    scenes=ScenesConfig(count=4, val_count=2, size=(64, 64)),
    augment=AugmentConfig(crop=(64, 64)),
    training=TrainingConfig(steps=2, batch_size=2, workers=0, devices=1),
)
found["trained"] = train(recipe).scores.miou
print(json.dumps(found))
"""


def imported(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_one_file_asks_for_it() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): imported(path) for path in PACKAGE.rglob("*.py")}
    asking = [
        source
        for source, names in sources.items()
        if not source.startswith("accelerate/") and any(name.startswith("cssformer.accelerate") for name in names)
    ]
    assert asking == ["inference/predictor.py"]


def test_a_package_without_it_predicts_scores_explains_and_trains_the_same(tmp_path: Path) -> None:
    folders = [copied(tmp_path / "with"), copied(tmp_path / "without", without="accelerate")]
    found = [json.loads(out.splitlines()[-1]) for out, _ in run(PROGRAM, folders)]
    assert [each.pop("swapped") for each in found] == ["FastMSFE", "MultiScaleFeatureEnhancement"]
    assert len({label for row in found[0]["labels"] for label in row}) > 1
    assert found[0] == found[1]
