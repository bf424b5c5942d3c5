"""The recipe of a training run: every default of the product stands here, and only here.

The defaults are the demonstration: a small network learns generated scenes on a CPU within about two minutes.
``configs/`` holds recipes for real pictures.
"""

import dataclasses
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError
from cssformer.utils.options import parse

if TYPE_CHECKING:
    from jsonargparse import Namespace

RECIPE = "recipe.yaml"
"""The resolved recipe's name in a run folder."""

_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, inf),
    "model.channels": (8, inf),
    "model.heads": (1, inf),
    "model.points": (1, inf),
    "model.msfe_depth": (0, inf),
    "model.csf_depth": (0, inf),
    "model.dropout": (0, 1),
    "augment.short_side": (32, inf),
    "augment.crop": (32, inf),
    "augment.scale": (0.01, 100),
    "augment.cat_max_ratio": (0, 1),
    "augment.flip": (0, 1),
    "training.steps": (1, inf),
    "training.batch_size": (1, inf),
    "training.device_batch": (1, inf),
    "training.lr": (0, inf),
    "training.backbone_lr_factor": (0, inf),
    "training.offsets_lr_factor": (0, inf),
    "training.weight_decay": (0, inf),
    "training.warmup_steps": (0, inf),
    "training.power": (0, inf),
    "training.clip": (0, inf),
    "training.ema": (0, 1),
    "training.auxiliary_weight": (0, inf),
    "training.devices": (1, inf),
    "training.nodes": (1, inf),
    "training.workers": (0, inf),
    "training.log_every": (1, inf),
    "training.validate_every": (1, inf),
    "evaluation.crop": (32, inf),
}
"""The least and the largest value that makes sense."""


@dataclass
class ModelConfig:
    """The network."""

    backbone: str = "resnet10t"
    """A timm model name with feature maps of stride 4, 8, 16 and 32."""
    pretrained: bool = False
    """Load timm's weights for the backbone from the Hugging Face hub."""
    weights: str | None = None
    """A local weight file for the backbone (.safetensors) instead of the hub's."""
    init: str | None = None
    """A trained network to start from: a model or run folder or a Hugging Face id. What does not fit begins anew."""
    mean: tuple[float, float, float] | None = None
    """What the backbone's weights expect to be subtracted from RGB in [0, 1]; by default as timm states it."""
    std: tuple[float, float, float] | None = None
    """Deviation that the backbone's weights expect: what is left is divided by it."""
    channels: int = 64
    """C, the decoder's width; the paper uses 256."""
    heads: int = 4
    """M, the attention heads of MSFE and CSF; the paper uses 8."""
    points: int = 4
    """K, sampled places per head and scale; the paper uses 16."""
    cia: bool = True
    """CIA, Channel Information Augmentation."""
    fusion: bool = True
    """MSFE and CSF: Multi-Scale Feature Enhancement and Cross-Scale Fusion."""
    fusion_stride: Literal[4, 8, 16, 32] = 4
    """Stride of the finest scale in MSFE and CSF; the paper's is 4, with 8 a quarter of the tokens is left."""
    msfe_depth: int = 1
    """How many MSFE blocks follow each other."""
    csf_depth: int = 1
    """How many CSF blocks follow each other."""
    aux: bool = True
    """The auxiliary head on the stride-16 backbone map, training only."""
    dropout: float = 0.1
    """Dropout before the class scores of both heads."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Passed on to timm.create_model."""


@dataclass
class ScenesConfig:
    """The generated pictures trained on when no data folder is given."""

    count: int = 4000
    """Pictures in the training split."""
    val_count: int = 60
    """Pictures in the validation split."""
    size: tuple[int, int] = (128, 128)
    """Height and width in pixels."""


@dataclass
class AugmentConfig:
    """What training does to each picture."""

    short_side: int | None = None
    """Resize every picture, in training and scoring, until its shorter side has so many pixels; null keeps its size."""
    crop: tuple[int, int] = (128, 128)
    """Height and width of the random crop."""
    scale: tuple[float, float] = (0.75, 1.33)
    """Range of the random scale before the crop; photographs take 0.5 to 2, generated scenes have one scale."""
    cat_max_ratio: float = 0.75
    """A crop in which one class has a larger share of the pixels is drawn again, up to ten times."""
    flip: float = 0.5
    """How often a picture is mirrored."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""


@dataclass
class TrainingConfig:
    """The optimisation."""

    steps: int = 300
    """Optimiser steps."""
    batch_size: int = 12
    """Pictures per optimiser step, all devices together; reached by accumulation where needed."""
    device_batch: int = 16
    """At most so many pictures at a time on one device."""
    lr: float = 6e-3
    """Peak learning rate of AdamW."""
    backbone_lr_factor: float = 1.0
    """The backbone's learning rate is so many times the decoder's; 0 freezes its weights, which makes steps cheaper."""
    offsets_lr_factor: float = 0.1
    """The sampling offsets' learning rate is so many times the decoder's; fast ones send points out of the picture."""
    weight_decay: float = 0.01
    """Of AdamW; never on norms, biases and embeddings."""
    warmup_steps: int = 40
    """Steps in which the learning rate rises linearly from nearly 0."""
    power: float = 1.0
    """Exponent of the learning rate's polynomial decay to 0, which follows the warm-up."""
    clip: float | None = 1.0
    """Largest norm of the gradient."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is then what is scored and kept; 0.999 is usual.
    It looks back about 1/(1 - decay) steps, which should be a small part of all: a longer look lags behind."""
    auxiliary_weight: float = 0.4
    """The auxiliary loss's weight."""
    precision: Literal["32", "bf16", "16"] = "32"
    """32, or mixed precision with bfloat16 or float16."""
    devices: int | Literal["auto"] = "auto"
    """GPUs (or CPU processes) on every node; all there are by default."""
    nodes: int = 1
    """Machines, each started with the same command by torchrun or SLURM."""
    workers: int = 2
    """Processes that load pictures, for every device."""
    log_every: int = 50
    """Steps between two rows of the metrics file."""
    validate_every: int = 150
    """Steps between two validations; each also writes the checkpoint that --resume continues from."""


@dataclass
class EvaluationConfig:
    """How pictures are predicted for a score."""

    mode: Literal["whole", "slide"] = "whole"
    """Whole pictures, or a window that slides over them."""
    crop: tuple[int, int] | None = None
    """Height and width of the sliding window; by default the training crop."""


@dataclass
class Recipe:
    """A training run from data to score."""

    data: str | None = None
    """A prepared data folder; by default generated scenes."""
    output: str = "runs/cssformer"
    """The run folder to make."""
    seed: int = 0
    """All randomness comes from it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """The generated pictures trained on when no data folder is given."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What training does to each picture."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The optimisation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How pictures are predicted for a score."""

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read a recipe that :meth:`save` wrote, or any YAML that sets some of its keys.

        Raises:
            UserError: no such file, not YAML, an unknown key (the nearest one is named) or a value of a wrong type or
                range.
        """
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(cls)
        return cls.from_options(parse(parser, ["--config", str(path)], str(path)))

    @classmethod
    def from_options(cls, options: "Namespace") -> "Recipe":
        """The recipe among parsed options.

        Raises:
            UserError: a value lies outside its range.
        """
        recipe = cls(**{item.name: getattr(options, item.name) for item in dataclasses.fields(cls)})
        for key, (least, most) in _RANGES.items():
            value = attrgetter(key)(recipe)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(least <= number <= most for number in numbers if isinstance(number, int | float)):
                wanted = f"at least {least}" if most == inf else f"from {least} to {most}"
                raise UserError(f"The recipe's {key} is {_plain(value)}; it must be {wanted}.")
        low, high = recipe.augment.scale
        if low > high:
            raise UserError(f"The recipe's augment.scale is {[low, high]}; the smaller number must come first.")
        return recipe

    def located(self) -> "Recipe":
        """The recipe with absolute paths, which finds its files from any folder."""
        data, weights = (path and str(Path(path).resolve()) for path in (self.data, self.model.weights))
        return dataclasses.replace(self, data=data, model=dataclasses.replace(self.model, weights=weights))

    def inference(self) -> dict[str, Any]:
        """How pictures are predicted, as options of :func:`cssformer.inference.predict`."""
        return {
            "mode": self.evaluation.mode,
            "crop": list(self.evaluation.crop or self.augment.crop),
            "short_side": self.augment.short_side,
        }

    def save(self, path: Path) -> None:
        """Write the resolved recipe as YAML, readable by ``--config``."""
        import yaml

        with atomic_write(path) as temporary:
            temporary.write_text(yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False))


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML writes them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
