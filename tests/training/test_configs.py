"""Every recipe under configs/: what it says of itself, its network at full size, and a dry run at a small one."""

import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from cssformer import CSSFormer
from cssformer.data import DatasetInfo
from cssformer.data.dataset_info import distinct_colours
from cssformer.training.recipe import Recipe
from cssformer.training.train import train
from cssformer.utils.options import PRESETS, ConfigFile, make_parser, parse

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "base"]
ROWS = [path for path in RECIPES if path.parent != CONFIGS]
RECIPES += sorted(PRESETS.glob("*.yaml"))
CLASSES = {"ade20k": 150, "cityscapes": 19, "pascal_context": 59, "coco_stuff_10k": 171}
BEST = {"ade20k": 55.48, "cityscapes": 84.72, "pascal_context": 59.95, "coco_stuff_10k": 50.92}
BACKBONES = {"tiny": 28, "small": 49, "base": 87, "large": 195}  # millions of parameters, as Swin's authors count them
# The same families at a size that builds in no time; MobileNetV2 is one already.
SHRUNK = {
    "swin": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "convnext": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]},
    "vit": {"depth": 4, "embed_dim": 32, "num_heads": 2},
    "mobilenetv2": {},
    "tf": {},
    "resnet10t": {},
}


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else path.stem


def test_the_papers_table_is_there() -> None:
    crops = {"ade20k": (512, 640), "cityscapes": (768, 1024), "pascal_context": (480,), "coco_stuff_10k": (512,)}
    expected = {f"{data}/swin_{size}_{crop}.yaml" for data in crops for size in BACKBONES for crop in crops[data]}
    assert {name(path) for path in ROWS} == expected


def test_every_base_is_used() -> None:
    used = {
        (path.parent / base).resolve() for path in CONFIGS.rglob("*.yaml") for base in _yaml(path).get("config", [])
    }
    assert used == {path.resolve() for path in (CONFIGS / "base").iterdir()}


def _yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", ROWS, ids=name)
def test_the_header_gives_the_papers_figure_as_the_papers(path: Path) -> None:
    (said,) = re.findall(r"^# The paper's mIoU: (.*)", path.read_text(), re.MULTILINE)
    if "swin_large" in path.name:
        assert said.startswith(f"{BEST[path.parent.name]} % is its best") and "guess" in said
    else:
        assert said == "not known to us."
    page = (ROOT / "docs" / "training.md").read_text()
    (row,) = [line for line in page.splitlines() if f"(../configs/{path.parent.name})" in line]
    assert path.stem.rpartition("_")[2] in row and row.endswith(f" {BEST[path.parent.name]} |")


@pytest.mark.parametrize("path", ROWS, ids=name)
def test_what_the_name_says(path: Path) -> None:
    recipe = Recipe.load(path)
    _, size, crop = path.stem.split("_")
    assert recipe.model.backbone.startswith(f"swin_{size}_") and recipe.augment.crop == (int(crop), int(crop))
    assert recipe.data == f"data/{path.parent.name}"
    assert (recipe.training.steps, recipe.training.batch_size, recipe.training.lr) == (80_000, 16, 6e-5)


def distinct() -> list[Path]:
    """A row of each backbone, and one of each crop with the smallest."""
    return list({path.stem if "tiny" in path.stem else path.stem.split("_")[1]: path for path in ROWS}.values())


@pytest.mark.filterwarnings("ignore:Sampling on meta")
@pytest.mark.parametrize("path", distinct(), ids=name)
def test_the_network_at_full_size(path: Path) -> None:
    recipe = Recipe.load(path)
    (height, width), classes = recipe.augment.crop, CLASSES[path.parent.name]
    shape = {key: getattr(recipe.model, key) for key in ("channels", "heads", "points", "backbone_args")}
    with torch.device("meta"):
        model = CSSFormer(recipe.model.backbone, classes, **shape)
        coarse = model.forward_logits(torch.empty(1, 3, height, width))
    assert coarse.shape == (1, classes, height // 4, width // 4)
    parameters = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert parameters / 1e6 == pytest.approx(BACKBONES[path.stem.split("_")[1]], rel=0.03)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared folders of two and one pictures with each benchmark's number of classes."""
    rng = np.random.default_rng(0)
    folders = {}
    for data, classes in {**CLASSES, "other": 3}.items():
        folders[data] = tmp_path_factory.mktemp(data)
        for split, count in (("train", 2), ("val", 1)):
            for kind in ("images", "labels"):
                (folders[data] / split / kind).mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 256, (48, 72, 3), dtype=np.uint8)
                label = rng.permuted(np.arange(48 * 72) % classes).astype(np.uint8).reshape(48, 72)
                label[:2] = 255
                cv2.imwrite(str(folders[data] / split / "images" / f"{index}.jpg"), image)
                cv2.imwrite(str(folders[data] / split / "labels" / f"{index}.png"), label)
        DatasetInfo(tuple(f"class {index}" for index in range(classes)), distinct_colours(classes)).save(folders[data])
    return folders


@pytest.mark.parametrize("path", [*distinct(), *(path for path in RECIPES if path not in ROWS)], ids=name)
def test_dry_run(path: Path, replicas: dict[str, Path], tmp_path: Path) -> None:
    original = Recipe.load(path)
    options = {
        "data": replicas.get(path.parent.name, replicas["other"]),
        "output": tmp_path / "run",
        "model.pretrained": "false",
        "model.channels": 16,
        "model.heads": 2,
        "model.points": 2,
        "augment.crop": "[64,64]",
        "training.steps": 1,
        "training.batch_size": 2,
        "training.workers": 0,
    }
    if original.augment.short_side is not None:
        options["augment.short_side"] = 64
    family = original.model.backbone.partition("_")[0]
    options |= {f"model.backbone_args.{key}": value for key, value in SHRUNK[family].items()}
    parser = make_parser()
    parser.add_argument("--config", action=ConfigFile)
    parser.add_class_arguments(Recipe)
    words = [f"--{key}={value}" for key, value in options.items()]
    recipe = Recipe.from_options(parse(parser, [f"--config={path}", *words], "dry run"))
    assert recipe.model.backbone_args.items() >= original.model.backbone_args.items()
    evaluation = train(recipe, console=Console(file=io.StringIO()))
    assert evaluation is not None and evaluation.names == ("0",)
    assert CSSFormer.from_pretrained(tmp_path / "run").num_classes == CLASSES.get(path.parent.name, 3)
