"""What a pass takes, against what PyTorch is found to hold, and what is refused for it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cssformer.backbones import add_lora, trunk
from cssformer.backbones.lora import LowRank
from cssformer.cli import main
from cssformer.training.assemble import build_model
from cssformer.training.estimate import fitting_batch, kept_bytes, require_memory
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, TrainingConfig
from cssformer.utils.errors import UserError
from cssformer.utils.memory import total_memory


class Classes:
    def __init__(self, count: int) -> None:
        self.classes = tuple(map(str, range(count)))
        self.info = self


VIT = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"depth": 4, "embed_dim": 384, "num_heads": 6}}


def task(vit: bool = False, **training: object) -> SegmentationTask:
    model = ModelConfig(channels=16, heads=2, points=2, **(VIT if vit else {"backbone": "test_resnet"}))
    recipe = Recipe(model=model, augment=AugmentConfig(crop=(1024, 2048)), training=TrainingConfig(**training))
    network = build_model(recipe, Classes(5))  # type: ignore[arg-type]
    if recipe.training.lora is not None:
        add_lora(trunk(network.backbone), recipe.training.lora)
    return SegmentationTask(network, recipe)


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (128, 128, {}),
        (64, 96, {}),
        (256, 320, {}),
        # Weights with its additions are as large for a small crop.
        (256, 256, {"vit": True, "lora": 2}),
        (256, 256, {"vit": True, "backbone_lr_factor": 0}),
    ],
)
def test_what_is_counted_is_what_autograd_holds(height: int, width: int, options: dict[str, Any]) -> None:
    asked = task(**options)
    before = {name: value.clone() for name, value in asked.state_dict().items()}
    random = torch.get_rng_state()
    estimate = kept_bytes(asked, height, width)
    assert all(torch.equal(value, before[name]) for name, value in asked.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and asked.model.training
    held: dict[int, torch.Tensor] = {}
    own = {parameter.data_ptr() for parameter in asked.parameters()}
    merged = {tuple(part.up.shape[:1] + part.down.shape[1:]) for part in asked.modules() if isinstance(part, LowRank)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own and not {tuple(tensor.shape), tuple(tensor.shape[::-1])} & merged:
            held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        asked.loss(asked.model(torch.rand(2, 3, height, width)), torch.zeros(2, height, width, dtype=torch.long))
    found = sum(tensor.untyped_storage().nbytes() for tensor in held.values()) / 2
    assert estimate == pytest.approx(found, rel=0.1)


def test_what_cannot_fit_is_refused_with_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, asked = torch.device("cpu"), task()
    parameters = 4 * sum(value.numel() for value in asked.parameters())
    each = kept_bytes(asked, 1024, 2048)

    def with_memory(size: float, batch: int = 8) -> None:
        monkeypatch.setattr("cssformer.training.estimate.total_memory", lambda _: size)
        require_memory(asked, cpu, batch)

    with_memory(4 * parameters + 8.01 * each)
    with pytest.raises(UserError, match=r"pass of 8 crops of 1024x2048 .*GiB.*device_batch of at most 3 "):
        with_memory(4 * parameters + 3.5 * each)
    with pytest.raises(UserError, match=r"not even one fits: give a smaller augment\.crop"):
        with_memory(4 * parameters + 0.5 * each)
    with pytest.raises(UserError, match=r"network alone does not fit"):
        with_memory(parameters)
    # What is frozen has neither gradients nor moments.
    frozen = asked.model.backbone.requires_grad_(False)
    still = sum(value.nbytes for value in frozen.parameters())
    with_memory(4 * parameters - 3 * still + 8.0001 * kept_bytes(asked, 1024, 2048))
    asked.recipe.augment.crop = (128, 128)
    with_memory(1)


def test_large_numbers_are_told_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert total_memory(torch.device("cpu")) > 2**28
    words = ["--augment.crop", "8192", "8192", "--training.device_batch", "65536", "--training.batch_size", "65536"]
    small = ["--model.backbone", "test_resnet", "--training.devices", "1", "--training.workers", "0"]
    assert main(["train", "--output", str(tmp_path / "run"), *words, *small]) == 2
    assert "65536 crops of 8192x8192 takes about" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_as_many_crops_as_fit_are_taken_and_the_run_keeps_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu, asked = torch.device("cpu"), task(batch_size=5)
    parameters = 4 * sum(value.numel() for value in asked.parameters())
    each = kept_bytes(asked, 1024, 2048)
    for memory, fitting in ((3.5, 3), (99, 5), (0.5, 1)):
        monkeypatch.setattr(
            "cssformer.training.estimate.total_memory", lambda _, fit=memory: (4 * parameters + fit * each) / 0.75
        )
        assert fitting_batch(asked, cpu) == fitting
    monkeypatch.setattr("cssformer.training.train.fitting_batch", lambda *_: 2)
    words = ["train", "--output", str(tmp_path / "run"), "--training.device_batch", "auto", "--training.workers", "0"]
    words += ["--training.batch_size", "4", "--training.steps", "1", "--augment.crop", "32", "32"]
    words += ["--scenes.val_count", "1", "--scenes.size", "32", "32", "--model.backbone", "test_resnet"]
    words += ["--model.channels", "16"]
    assert main(words) == 0
    assert "4 pictures, 2 at a time" in capsys.readouterr().out
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").training.device_batch == 2
    monkeypatch.setattr("cssformer.training.train.fitting_batch", lambda *_: 4)
    words[words.index("--training.steps") + 1] = "2"
    assert main([*words, "--resume"]) == 0
    assert "4 pictures, 2 at a time" in capsys.readouterr().out
