"""An interrupted run that is resumed ends with the weights of the uninterrupted one, bit for bit."""

import csv
import dataclasses
import io
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock
from rich.console import Console
from safetensors.torch import load_file

from cssformer import CSSFormer
from cssformer.cli import _find_command, _parse, main
from cssformer.data import Sample, SyntheticScenes
from cssformer.data.stream import TrainingStream
from cssformer.model import Metadata
from cssformer.training import train as runs
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.run_folder import LAST, LOCK, AtomicCheckpointIO, alone, read_checkpoint
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Interrupted

STEPS, BATCH = 7, 4
drawn = TrainingStream.__getitem__


VIT = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"depth": 4, "embed_dim": 48, "num_heads": 2}}


def recipe(output: Path, **training: object) -> Recipe:
    backbone = VIT if "lora" in training or "layer_decay" in training else {"backbone": "test_resnet"}
    if "grad_checkpointing" in training and backbone is VIT:
        backbone = {**VIT, "backbone_args": {**VIT["backbone_args"], "pyramid": "adapter"}}
    return Recipe(
        output=str(output),
        model=ModelConfig(channels=16, heads=2, points=2, **backbone),
        scenes=ScenesConfig(count=10, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32)),
        training=TrainingConfig(
            **{"steps": STEPS, "batch_size": BATCH, "warmup_steps": 2, "log_every": 2, "validate_every": 3},
            **{"workers": 0, **training},
        ),
    )


class Killed(Exception):
    """Stands for the power cut: nothing more is written."""


def disturb(monkeypatch: pytest.MonkeyPatch, at_reading: int, kill: bool) -> None:
    """Ctrl-C, or a crash, while the n-th training picture is read."""
    readings = 0

    class Disturbed(SyntheticScenes):
        def __getitem__(self, index: int) -> Sample:
            nonlocal readings
            training = len(self) == 10
            readings += training
            if training and readings == at_reading:
                if kill:
                    raise Killed
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    monkeypatch.setattr("cssformer.training.datasets.SyntheticScenes", Disturbed)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("kill", "step", "training"),
    [
        (False, 2, {"clip": None}),
        (False, 3, {"ema": 0.9, "device_batch": 2}),
        (True, 5, {"ema": 0.9}),
        (False, 4, {"lora": 2, "ema": 0.9, "device_batch": 2}),
        (False, 5, {"swa_after": 3, "optimizer": "muon", "precision": "bf16", "patience": 9}),
        (True, 5, {"swa_after": 1, "non_finite": "skip", "workers": 1}),
        (False, 2, {"layer_decay": 0.7, "thaw_after": 4}),
        (False, 5, {"layer_decay": 0.7, "thaw_after": 3, "freeze_statistics": True, "grad_checkpointing": True}),
    ],
)
def test_resumed_weights_are_the_uninterrupted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool, step: int, training: dict
) -> None:
    whole, broken = recipe(tmp_path / "whole", **training), recipe(tmp_path / "broken", **training)
    runs.train(whole)
    with monkeypatch.context() as patch:
        disturb(patch, at_reading=step * BATCH, kill=kill)
        with pytest.raises(Killed if kill else Interrupted):
            runs.train(broken)
    # The best network so far is there to be used.
    assert (tmp_path / "broken" / "model").exists() == (step >= 3)
    runs.train(broken, resume=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    kept = [(run / "model" / "model.safetensors").read_bytes() for run in (tmp_path / "whole", tmp_path / "broken")]
    assert kept[0] == kept[1]
    # The metrics file tells the same story, each step once.
    columns = [
        [(row.split(",")[0], row.split(",")[1], row.split(",")[4]) for row in (run / "metrics.csv").read_text().split()]
        for run in (tmp_path / "whole", tmp_path / "broken")
    ]
    steps = [[row[0] for row in rows] for rows in columns]
    assert steps[0][-1] == steps[1][-1] == str(STEPS)
    assert [row for row in columns[0] if row[2]] == [row for row in columns[1] if row[2]]


def test_names_have_one_order_wherever_they_come_from(tmp_path: Path) -> None:
    """Read again they were sorted, so that a resumed run's ``config.json`` was another file."""
    words = [
        "train",
        "--output",
        str(tmp_path),
        '--model.backbone_args={"pyramid": "x", "depth": 4, "a": {"z": 1, "b": 2}}',
    ]
    command, arguments = _find_command(words)[1], words[1:]
    assert command is not None
    given = Recipe.from_options(_parse(command, "train", arguments))
    given.save(tmp_path / "recipe.yaml")
    read = Recipe.load(tmp_path / "recipe.yaml")
    made = ModelConfig(backbone_args={"pyramid": "x", "a": {"z": 1, "b": 2}, "depth": 4})
    for recipe in (given, read):
        assert repr(recipe.model.backbone_args) == repr(made.backbone_args)


def test_another_recipe_than_that_of_the_run_is_refused(done: Recipe) -> None:
    other = dataclasses.replace(done, augment=dataclasses.replace(done.augment, blur=0.5))
    with pytest.raises(UserError, match=r"own recipe, whose augment\.blur is 0\.0;"):
        runs.train(other, resume=True)


def test_the_licence_outlives_a_stop_before_the_first_network_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, begun = CSSFormer("test_resnet", 17, channels=16, heads=2, points=2), recipe(tmp_path / "run")
    first.metadata = Metadata(backbone_licence="cc-by-nc-4.0")
    first.save_pretrained(tmp_path / "first")
    begun.model.init = str(tmp_path / "first")
    with monkeypatch.context() as patch:
        disturb(patch, at_reading=2 * BATCH, kill=False)
        with pytest.raises(Interrupted):
            runs.train(begun)
    # Killed while it wrote its first network.
    (tmp_path / "run" / "model").mkdir()
    runs.train(begun, resume=True)
    assert CSSFormer.from_pretrained(tmp_path / "run").metadata.backbone_licence == "cc-by-nc-4.0"


def test_the_words_that_started_from_a_network_may_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CSSFormer("test_resnet", 17, channels=16, heads=2, points=2).save_pretrained(tmp_path / "first")
    asked = recipe(tmp_path / "run")
    asked.training.steps = 1
    asked.save(tmp_path / "asked.yaml")
    options = {"init": "first", "backbone": "test_resnet", "pretrained": "true", "weights": "none.pth"}
    words = [f"--model.{name}={value}" for name, value in options.items()]
    begun = ["train", "--config", str(tmp_path / "asked.yaml"), *words]
    assert main(begun) == 0
    assert main(["train", "--output", str(tmp_path / "run"), *words, "--resume"]) == 0
    # The run's own recipe finds it from any folder; what is no folder is a hub id.
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").model.init == str(tmp_path / "first")
    assert Recipe(model=ModelConfig(init="you/yours")).located().model.init == "you/yours"


def test_maps_that_are_computed_again_count_once_in_the_statistics(tmp_path: Path) -> None:
    for name in ("kept", "again"):
        asked = recipe(tmp_path / name, grad_checkpointing=name == "again")
        asked.training.steps = 2
        runs.train(asked)
    kept, again = weights(tmp_path / "kept"), weights(tmp_path / "again")
    assert [name for name in kept if "num_batches" not in name and not torch.equal(kept[name], again[name])] == []


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        asked = dataclasses.replace(recipe(tmp_path / name), seed=seed)
        asked.training.steps = 1
        runs.train(asked)
    a, b, c = (weights(tmp_path / name)["head.classify.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_run_is_neither_overwritten_nor_resumed_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        runs.train(recipe(tmp_path), resume=True)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"holds a run already.*--resume"):
        runs.train(recipe(tmp_path))
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        runs.train(recipe(tmp_path), resume=True)


def test_a_run_folder_belongs_to_one_process_and_a_start_that_fails_leaves_none(tmp_path: Path) -> None:
    with FileLock(tmp_path / "run" / LOCK), pytest.raises(UserError, match=r"trains into .*run; wait"):
        runs.train(recipe(tmp_path / "run"))
    with pytest.raises(UserError, match="no run to resume"):
        runs.train(recipe(tmp_path / "new" / "run"), resume=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write the run folder .*file"):
        runs.train(recipe(tmp_path / "file"))


def test_a_run_that_failed_before_its_first_checkpoint_may_start_again_and_signals_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        disturb(patch, at_reading=1, kill=True)
        with pytest.raises(Killed):
            runs.train(recipe(tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    runs.train(recipe(tmp_path))
    assert weights(tmp_path)


def test_a_run_of_other_classes_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.train(recipe(tmp_path))
    count = len(SyntheticScenes(1).info.classes)

    class Fewer(SyntheticScenes):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            info = self.info
            self.info = dataclasses.replace(info, classes=info.classes[:3], colours=info.colours[:3])

    monkeypatch.setattr("cssformer.training.datasets.SyntheticScenes", Fewer)
    further = recipe(tmp_path)
    further.training.steps = STEPS + 1
    with pytest.raises(UserError, match=f"begun with {count} classes, but its data has 3"):
        runs.train(further, resume=True)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda checkpoint: [1, 2],
    "number": lambda checkpoint: 3,
    "tensor": lambda checkpoint: torch.zeros(3),
    "empty": lambda checkpoint: {},
    "no weights": lambda checkpoint: {key: value for key, value in checkpoint.items() if key != "state_dict"},
    "no loops": lambda checkpoint: {key: value for key, value in checkpoint.items() if key != "loops"},
    "no callbacks": lambda checkpoint: {key: value for key, value in checkpoint.items() if key != "callbacks"},
    "other step": lambda checkpoint: {**checkpoint, "global_step": 3},
    "half a step": lambda checkpoint: {**checkpoint, "global_step": 2.5},
    "true step": lambda checkpoint: {**checkpoint, "global_step": True},
    "empty optimiser": lambda checkpoint: {**checkpoint, "optimizer_states": [{"state": {}, "param_groups": []}]},
    "a text among weights": lambda checkpoint: {**checkpoint, "state_dict": {**checkpoint["state_dict"], "x": "y"}},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of one step; read only."""
    finished = recipe(tmp_path_factory.mktemp("done"))
    finished.training.steps = 1
    runs.train(finished)
    return finished


def test_a_run_whose_weights_were_grouped_otherwise_is_told(done: Recipe, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.output, tmp_path / "run"))
    checkpoint = torch.load(run / LAST, weights_only=True)
    first, second, *others = checkpoint["optimizer_states"][0]["param_groups"]
    first["params"] += second["params"]
    checkpoint["optimizer_states"][0]["param_groups"] = [first, *others]
    del checkpoint["sha256"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, run / LAST)
    further = dataclasses.replace(done, output=str(run), training=dataclasses.replace(done.training, steps=2))
    with pytest.raises(UserError, match=r"grouped the weights otherwise; .* --model\.init .*run and another --output"):
        runs.train(further, resume=True)


class Own(CSSFormer): ...


def test_a_run_of_a_class_of_ones_own_goes_on_with_it_alone(tmp_path: Path) -> None:
    """Its weights may have the very names and shapes of another's, and another formula."""

    def build(recipe: Recipe, data: Any) -> CSSFormer:
        return Own("test_resnet", len(data.info.classes), channels=16, heads=2, points=2)

    begun = recipe(tmp_path)
    begun.training.steps = 1
    runs.train(begun, build=build)
    begun.training.steps = 2
    with pytest.raises(UserError, match=r"begun with the class Own, not CSSFormer; continue it from Python"):
        runs.train(begun, resume=True)
    assert runs.train(begun, resume=True, build=build) is not None
    told = io.StringIO()
    further = recipe(tmp_path / "further")
    further.training.steps, further.model.init = 1, str(tmp_path)
    runs.train(further, console=Console(file=told, width=500))
    assert f"warning: {tmp_path} is of the class Own, this network of CSSFormer" in told.getvalue()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_checkpoint_is_refused(done: Recipe, tmp_path: Path, change: str) -> None:
    run = Path(shutil.copytree(done.output, tmp_path / "run"))
    torch.save(CHANGES[change](torch.load(run / LAST, weights_only=True)), run / LAST)
    with pytest.raises(UserError, match=r"^The checkpoint .*last\.ckpt is damaged, was changed, .*--output\.$"):
        runs.train(dataclasses.replace(done, output=str(run)), resume=True)


def test_a_flipped_byte_never_passes(done: Recipe, tmp_path: Path) -> None:
    (tmp_path / LAST).parent.mkdir()
    whole, rng = (Path(done.output) / LAST).read_bytes(), np.random.default_rng(0)
    expected = read_checkpoint(Path(done.output), True)
    assert expected is not None
    refused = 0
    for place in rng.integers(len(whole), size=40):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        (tmp_path / LAST).write_bytes(broken)
        try:
            found = read_checkpoint(tmp_path, True)
        except UserError:
            refused += 1
        else:
            # The byte was padding between the records.
            assert found is not None and found["global_step"] == 1
            assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())
    assert refused > 20


def test_a_run_whose_best_network_is_lost_keeps_the_next_one(done: Recipe, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.output, tmp_path / "run"))
    checkpoint = torch.load(run / LAST, weights_only=True)
    checkpoint["callbacks"]["BestModel"]["best"] = 0.99
    del checkpoint["sha256"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, run / LAST)
    (run / "model" / "model.safetensors").write_bytes(b"half")
    further = dataclasses.replace(done, output=str(run), training=dataclasses.replace(done.training, steps=2))
    out = io.StringIO()
    assert runs.train(further, resume=True, console=Console(file=out, width=1000)) is not None
    assert "warning: the best network is lost" in out.getvalue() and weights(run)


def test_a_damaged_table_of_metrics_is_told(done: Recipe, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.output, tmp_path / "run"))
    (run / "metrics.csv").write_text("no table\n1,2\n")
    further = dataclasses.replace(done, output=str(run), training=dataclasses.replace(done.training, steps=2))
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        runs.train(further, resume=True)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_may_take_more_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    # With a power of 0 the learning rate does not depend on the number of steps.
    whole, part = (recipe(tmp_path / name, power=0.0) for name in ("whole", "part"))
    runs.train(whole)
    if stopped:
        with monkeypatch.context() as patch:
            disturb(patch, at_reading=2 * BATCH, kill=False)
            with pytest.raises(Interrupted):
                runs.train(part)
    else:
        part.training.steps = 3
        runs.train(part)
        assert (Path(part.output) / "scores.json").exists()
        part.training.steps = STEPS
    out = io.StringIO()
    runs.train(part, resume=True, console=Console(file=out))
    assert f"Continuing from step {2 if stopped else 3} to step {STEPS}." in out.getvalue()
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_run_may_take_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        disturb(patch, at_reading=5 * BATCH, kill=False)
        with pytest.raises(Interrupted):
            runs.train(recipe(tmp_path))
    fewer = recipe(tmp_path)
    fewer.training.steps = 4
    # Step 5 is done, and step 3 was validated.
    evaluation = runs.train(fewer, resume=True)
    assert evaluation is not None and weights(tmp_path)


def test_the_rate_follows_the_number_of_steps_from_the_first_one_on(tmp_path: Path) -> None:
    short = recipe(tmp_path, power=1.0)
    short.training.steps, short.training.log_every, short.training.warmup_steps = 3, 1, 0
    runs.train(short)
    short.training.steps = 6
    runs.train(short, resume=True)
    with (tmp_path / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert rates[3:] == pytest.approx([short.training.lr * (1 - step / 6) for step in (4, 5, 6)])


@pytest.mark.parametrize(("batch_size", "device_batch"), [(2, 1), (8, 4)])
def test_a_run_goes_on_by_another_schedule_and_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, device_batch: int
) -> None:
    begun, said = recipe(tmp_path), io.StringIO()
    begun.training.steps, begun.training.log_every, begun.training.device_batch = 2, 1, 2
    runs.train(begun)
    # As recipes are read: nothing is changed in the one that is given.
    training = {"lr": 0.5e-3, "power": 2.0, "warmup_steps": 0, "steps": 5, "validate_every": 3}
    changed = dataclasses.replace(begun.training, batch_size=batch_size, device_batch=device_batch, **training)
    seen: list[int] = []
    monkeypatch.setattr(TrainingStream, "__getitem__", lambda stream, index: seen.append(index) or drawn(stream, index))
    runs.train(dataclasses.replace(begun, training=changed), resume=True, console=Console(file=said, width=500))
    assert seen == list(range(2 * batch_size, 5 * batch_size))
    assert (
        f"training.batch_size 4 -> {batch_size}." in said.getvalue() and "training.power 1.0 -> 2.0." in said.getvalue()
    )
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["lr"]] == list("12345")
    assert [row["step"] for row in rows if row["mIoU"]] == list("235")
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    assert rates[2:] == pytest.approx([0.5e-3 * (1 - step / 5) ** 2 for step in (3, 4, 5)])


def test_a_run_that_is_not_finished_can_be_used_and_given_more_steps(
    done: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(done.output, tmp_path / "run"))
    assert main(["evaluate", str(run)]) == 0
    assert "not finished" not in capsys.readouterr().out
    (run / "scores.json").unlink()
    cv2.imwrite(str(tmp_path / "picture.png"), np.zeros((40, 40, 3), np.uint8))
    predict = ["predict", str(run), str(tmp_path / "picture.png"), "--output", str(tmp_path / "labels")]
    for words in (["evaluate", str(run)], predict):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{run} has not finished its training; this is its best network so far.\n")
    assert CSSFormer.from_pretrained(run).num_classes > 1
    assert main(["train", "--output", str(run), "--resume", "--training.steps", "2"]) == 0
    assert "training.steps 1 -> 2: the learning rate falls to 0 at step 2 now." in capsys.readouterr().out
    assert Recipe.load(run / "recipe.yaml").training.steps == 2
    # The words that it was begun with may be repeated.
    assert main(["train", "--output", str(run), "--resume", f"--training.lr={done.training.lr}"]) == 0
    assert "is finished, with 2 steps" in capsys.readouterr().out
    assert main(["train", "--output", str(run), "--resume", "--seed", "2"]) == 2
    assert "whose seed is 0; of a run's options only --data and --training.steps, patience" in capsys.readouterr().err
    # Stopped before its first validation.
    (run / "scores.json").unlink()
    shutil.rmtree(run / "model")
    assert main(predict) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(
        rf"cssformer: .*never validated; .*--output {re.escape(str(run))} --resume\n", err
    )


def test_the_default_number_of_steps_may_be_asked_for(done: Recipe, tmp_path: Path) -> None:
    run = shutil.copytree(done.output, tmp_path / "run")
    steps = str(TrainingConfig().steps)
    options = ["--output", str(run), "--resume", "--training.steps", steps]
    taken: list[Recipe] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cssformer.training.train.train", lambda recipe, resume: taken.append(recipe))
        assert main(["train", *options]) == 0
    assert taken[0].training.steps == TrainingConfig().steps != done.training.steps


@pytest.mark.parametrize("file", [LAST, "model/model.safetensors"])
def test_weights_that_a_killed_training_left_half_written_go(tmp_path: Path, file: str) -> None:
    whole = tmp_path / file
    whole.parent.mkdir()
    whole.with_name(f".cssformer-12345678{whole.suffix}").write_bytes(b"half")
    whole.write_bytes(b"whole")
    with alone(tmp_path):
        assert [path.name for path in whole.parent.iterdir()] == [whole.name]


def test_data_may_move_but_not_change(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    begun = recipe(run)
    begun.data, begun.training.steps = str(prepared), 1
    runs.train(begun)
    prepared.rename(moved)
    words = ["train", "--output", str(run), "--resume", "--training.steps", "2"]
    assert main(words) == 2
    assert f"no folder {prepared}, the data of the run; tell their place with --data." in capsys.readouterr().err
    assert main([*words, "--data", str(moved)]) == 0
    assert Recipe.load(run / "recipe.yaml").data == str(moved)
    label = moved / "train/labels/0.png"
    label.write_bytes(label.read_bytes() + b"one byte more, which no decoder reads")
    assert main([*words[:-1], "3"]) == 2
    assert f"The data in {moved} are not those that the run in {run} was begun with" in capsys.readouterr().err
