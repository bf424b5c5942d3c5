"""The network knows nothing of what makes it fast: ``accelerate`` can be deleted, and an edit is obeyed everywhere."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import cssformer
from tests.model.copies import copied, run

PACKAGE = Path(cssformer.__file__).parent
EVERYTHING = """
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


EDITS: dict[str, tuple[str, str, str]] = {
    "sigmoid for softmax": ("msfe.py", ".softmax(-1)", ".sigmoid()"),
    "positions clamped": (
        "msfe.py",
        "positions_BNMLK2 = reference_NL2[:, None, :, None] + offsets_BNMLK2",
        "positions_BNMLK2 = (reference_NL2[:, None, :, None] + offsets_BNMLK2).clamp(0, 1)",
    ),
}
LOGITS = """
import json, logging, sys
import numpy as np, torch
from cssformer import CSSFormer, Predictor
from cssformer.accelerate import accelerate_cpu
from cssformer.inference import explain
logging.basicConfig(stream=sys.stderr)
torch.manual_seed(0)
model = CSSFormer("convnext_atto", num_classes=5, channels=32, heads=4, points=2, dropout=0.0, aux=False,
                  backbone_args={"drop_path_rate": 0.0})
for parameter in model.parameters():
    if not parameter.abs().max():
        torch.nn.init.normal_(parameter, std=0.2)
images = torch.rand(1, 3, 64, 96)
training = model.train()(images).detach()
model.eval()
with torch.no_grad():
    evaluation, fast = model(images), accelerate_cpu(model)(images)
pixels = (255 * images[0].permute(1, 2, 0)).byte().numpy()
msfe = explain(Predictor(model, "cpu"), pixels, 30, 20).maps[0]
print(json.dumps({
    "std": training.std().item(), "first": training.flatten()[:50].tolist(),
    "evaluation": (evaluation - training).abs().max().item(), "fast": (fast - training).abs().max().item(),
    "sums": msfe.weights.sum((2, 3)).flatten().tolist(),
    "largest": float(np.abs(msfe.places).max()),
}))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], str]]:
    """What programs find, and log, in copies of the package: as it is, without ``accelerate``, and after each edit."""
    programs = {"with": EVERYTHING, "without": EVERYTHING, "plain": LOGITS, **dict.fromkeys(EDITS, LOGITS)}
    folders = {
        name: copied(tmp_path_factory.mktemp("copy"), without="accelerate" if name == "without" else "")
        for name in programs
    }
    for edit, (name, before, after) in EDITS.items():
        source = folders[edit] / "cssformer" / "model" / name
        text = source.read_text(encoding="utf-8")
        assert text.count(before) == 1
        source.write_text(text.replace(before, after), encoding="utf-8")
    told = run({folder: programs[name] for name, folder in folders.items()})
    return {name: (json.loads(out.splitlines()[-1]), log) for name, (out, log) in zip(folders, told, strict=True)}


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


def test_a_package_without_it_predicts_scores_explains_and_trains_the_same(
    printed: dict[str, tuple[dict[str, Any], str]],
) -> None:
    found = [dict(printed[name][0]) for name in ("with", "without")]
    assert [each.pop("swapped") for each in found] == ["FastMSFE", "MultiScaleFeatureEnhancement"]
    assert len({label for row in found[0]["labels"] for label in row}) > 1
    assert found[0] == found[1]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_line_changes_training_evaluation_and_explanation_alike(
    edit: str, printed: dict[str, tuple[dict[str, Any], str]]
) -> None:
    (plain, _), (changed, log) = printed["plain"], printed[edit]
    scale = changed["std"]
    assert max(abs(a - b) for a, b in zip(plain["first"], changed["first"], strict=True)) > 0.01 * scale
    assert changed["evaluation"] < 1e-4 * scale and changed["fast"] < 1e-4 * scale
    assert "msfe.0" in log and "is not accelerated" in log
    assert plain["sums"] == pytest.approx([1.0] * len(plain["sums"]), abs=1e-4)
    if edit == "sigmoid for softmax":
        assert changed["sums"] != pytest.approx([1.0] * len(changed["sums"]), abs=0.5)
    else:
        # Pixel 1 of the coarsest scale is pixel 47.5 of the picture.
        assert plain["largest"] > 47.5 >= changed["largest"]
