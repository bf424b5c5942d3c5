"""The recipe of a training run: every default of the product stands here, and only here.

The defaults are the demonstration: a small network learns generated scenes on a CPU within about two minutes.
``configs/`` holds recipes for real pictures.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import Namespace

from cssformer.utils.atomic import atomic_text
from cssformer.utils.errors import UserError
from cssformer.utils.options import (
    Angle,
    Bands,
    Batch,
    Channels,
    ConfigFile,
    Count,
    Depth,
    Deviation,
    Devices,
    FFNRatio,
    Fraction,
    Mean,
    Natural,
    NonNegative,
    Points,
    Positive,
    Scale,
    Scenes,
    Share,
    Shift,
    Side,
    Slant,
    Workers,
    make_parser,
    parse,
)
from cssformer.weights.bundled import bundled_models

if TYPE_CHECKING:
    from cssformer.model import CSSFormer

# jsonargparse reads classes' sources when it builds a parser; built by several threads, some had lost options.
_BUILDING = Lock()
MIOU, BOUNDARY_IOU, OF_CLASS = "mIoU", "Boundary IoU", "IoU of "
"""What training.best may be, the last one followed by the name of a class."""

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]


@dataclass
class ModelConfig:
    """The network."""

    backbone: str = "resnet10t"
    """A timm model name with feature maps of stride 4, 8, 16 and 32."""
    pretrained: bool = False
    """Load timm's weights for the backbone from the Hugging Face hub."""
    weights: str | None = None
    """A local weight file for the backbone (.safetensors, .pth) instead of the hub's, by timm or other programs."""
    init: str | None = None
    """A trained network to start from: a run or model folder, a bundled model or a hub id. The rest begins anew."""
    in_channels: Bands = 3
    """Channels of the pictures, 3 for photographs; a prepared folder tells those of its own, which go over this."""
    mean: list[Mean] | None = None
    """What is subtracted from each channel, RGB in [0, 1]; by default as timm states it, or as prepare measured it."""
    std: list[Deviation] | None = None
    """Deviation of each channel, by which what is left is divided."""
    channels: Channels = 64
    """C, the decoder's width; the paper uses 256."""
    heads: Points = 4
    """M, the attention heads of MSFE and CSF; the paper uses 8."""
    points: Points = 4
    """K, sampled places per head and scale; the paper uses 16."""
    cia: bool = True
    """CIA, Channel Information Augmentation."""
    fusion: bool = True
    """MSFE and CSF: Multi-Scale Feature Enhancement and Cross-Scale Fusion."""
    fusion_stride: Literal[4, 8, 16, 32] = 4
    """Stride of the finest scale in MSFE and CSF; the paper's is 4, with 8 a quarter of the tokens is left."""
    msfe_depth: Depth = 1
    """How many MSFE blocks follow each other."""
    csf_depth: Depth = 1
    """How many CSF blocks follow each other."""
    ffn_ratio: FFNRatio = 4
    """The hidden width of the feed-forward layers of MSFE and CSF is so many times C."""
    aux: bool = True
    """The auxiliary head on the stride-16 backbone map, training only."""
    dropout: Share = 0.1
    """Dropout before the class scores of both heads."""
    backbone_args: dict[str, bool | int | float | str | list | dict | None] = field(default_factory=dict)
    """Passed on to timm.create_model."""

    def __post_init__(self) -> None:
        # As a recipe that is read again has them, so that a resumed run saves the same bytes.
        self.backbone_args = _in_order(self.backbone_args)

    def untrained(self) -> "ModelConfig":
        """The same without first weights of the backbone: for who loads all weights later, or none."""
        return dataclasses.replace(self, pretrained=False, weights=None)

    def build(self, num_classes: int) -> "CSSFormer":
        """The network, without the weights of ``init``.

        Raises:
            UserError: the options do not fit each other, there is no such backbone, or its weights cannot be had.
        """
        from cssformer.model import CSSFormer

        arguments = {name: value for name, value in vars(self).items() if name != "init"}
        try:
            return CSSFormer(num_classes=num_classes, **arguments)
        except ValueError as error:
            raise UserError(f"The recipe's model cannot be built: {error}.") from error


@dataclass
class ScenesConfig:
    """The generated pictures trained on when no data folder is given."""

    count: Scenes = 4000
    """Pictures in the training split."""
    val_count: Scenes = 60
    """Pictures in the validation split."""
    size: tuple[Side, Side] = (128, 128)
    """Height and width in pixels."""


@dataclass
class AugmentConfig:
    """What training does to each picture."""

    short_side: Side | None = None
    """Resize every picture, in training and scoring, until its shorter side has so many pixels; null keeps its size."""
    crop: tuple[Side, Side] = (128, 128)
    """Height and width of the random crop."""
    scale: tuple[Scale, Scale] = (0.75, 1.33)
    """Range of the random scale before the crop; photographs take 0.5 to 2, generated scenes have one scale."""
    cat_max_ratio: Share = 0.75
    """A crop in which one class has a larger share of the pixels is drawn again, up to ten times."""
    rotate: Angle = 0.0
    """A picture is turned by up to so many degrees either way; its outside is ignored."""
    shear: Slant = 0.0
    """A picture is sheared by up to so many degrees either way."""
    perspective: Shift = 0.0
    """Each corner moves by up to this share of the sides, as if the picture were seen from elsewhere."""
    flip: Share = 0.5
    """How often a picture is mirrored."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""
    grey: Share = 0.0
    """How often a picture loses its colours."""
    blur: Share = 0.0
    """How often it is blurred, by a deviation of 0.5 to 2 pixels."""
    noise: Share = 0.0
    """How often it gets noise, of a deviation of 2 to 20 of 255."""
    jpeg: Share = 0.0
    """How often it is compressed as JPEG, with a quality of 20 to 90."""
    erase: Share = 0.0
    """How often a rectangle of 2 to 20 % is erased, and ignored."""
    rare_class_crops: Share = 0.0
    """How often a crop is drawn that holds a class drawn by inverse frequency."""
    paste: Share = 0.0
    """How often the pixels of such a class are pasted in from another picture."""
    cutmix: Share = 0.0
    """How often a rectangle of 10 to 50 % comes from another picture."""
    custom: str | None = None
    """Your own, by module and name, such as mypackage.augment; it is called as albumentations' Compose is."""


@dataclass
class LossConfig:
    """What is minimised: losses summed by weight, for both heads."""

    cross_entropy: NonNegative = 1.0
    """Weight of the cross-entropy, which alone is the paper's loss; 0 leaves it out, as in the next five."""
    focal: NonNegative = 0.0
    """Weight of the focal loss: what is right already hardly counts."""
    dice: NonNegative = 0.0
    """Weight of the Dice loss: each class's overlap counts alike, however small the class."""
    tversky: NonNegative = 0.0
    """Weight of the Tversky loss: Dice that takes missed pixels more seriously than wrongly found ones."""
    lovasz: NonNegative = 0.0
    """Weight of the Lovasz-softmax loss: nearest to the IoU."""
    boundary: NonNegative = 0.0
    """Weight of the boundary loss: what is wrong costs the more the farther from the contour; only beside others."""
    class_weights: Literal["balanced", "sqrt", "effective"] | list[NonNegative] | None = None
    """A weight for each class: balanced (by its pixels), sqrt (by their root), effective (by pictures), or given."""
    label_smoothing: Share = 0.0
    """Of the cross-entropy: the share of the target that is spread over all classes; 0.1 is usual."""
    ohem: Fraction = 1.0
    """Of the cross-entropy: only this share of the pixels counts, those of the greatest loss; 0.25 is usual."""
    focal_gamma: NonNegative = 2.0
    """Of the focal loss: the greater, the less those pixels count that are right already."""
    tversky_beta: Share = 0.7
    """Of the Tversky loss: what a missed pixel costs; a wrongly found one costs the rest to 1."""


@dataclass
class TrainingConfig:
    """The optimisation."""

    steps: Count = 300
    """Optimiser steps."""
    batch_size: Batch = 12
    """Pictures per optimiser step, all devices together; reached by accumulation where needed."""
    device_batch: Batch | Literal["auto"] = 16
    """At most so many pictures at a time on one device; auto takes as many as three quarters of its memory hold."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the steps of matrices; those of norms, biases, embeddings and heads are NAdamW's."""
    lr: NonNegative = 6e-3
    """Peak learning rate."""
    backbone_lr_factor: NonNegative = 1.0
    """The backbone's learning rate is so many times the decoder's; 0 freezes its weights, which makes steps cheaper."""
    layer_decay: Share = 1.0
    """Each layer of the backbone learns at so many times the rate of the one above; 0.65 to 0.9 are usual for ViTs."""
    thaw_after: Natural = 0
    """The backbone's weights stay as they are for so many steps, in which the decoder comes to fit them."""
    freeze_statistics: bool = False
    """The statistics of the backbone's BatchNorms stay as they are."""
    lora: Count | None = None
    """Instead of the backbone's weights, learn additions of so low a rank to those of its attention; 4 to 16 are usual.
    They learn at the decoder's rate and are merged into the network that is saved."""
    offsets_lr_factor: NonNegative = 0.1
    """The sampling offsets' learning rate is so many times the decoder's; fast ones send points out of the picture."""
    weight_decay: NonNegative = 0.01
    """Decoupled, of both optimisers; never on norms, biases and embeddings."""
    warmup_steps: Natural = 40
    """Steps in which the learning rate rises linearly from nearly 0."""
    power: NonNegative = 1.0
    """Exponent of the learning rate's polynomial decay to 0, which follows the warm-up."""
    clip: Positive | None = 1.0
    """Largest norm of the gradient; null does not limit it."""
    ema: Share | None = None
    """Decay of a moving average of the weights, which is then what is scored and kept; 0.999 is usual.
    It looks back about 1/(1 - decay) steps, which should be a small part of all: a longer look lags behind."""
    swa_after: Natural | None = None
    """The mean of the weights after each further step is what is scored and kept (SWA), best with a power of 0."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A step with a loss or gradient that is not finite ends the training (stop) or is left out (skip), unless ten
    follow each other; its pictures are kept."""
    auxiliary_weight: NonNegative = 0.4
    """The auxiliary loss's weight."""
    grad_checkpointing: bool = False
    """Compute the maps of the backbone, MSFE and CSF again for the gradients: less memory, about a third more time."""
    precision: Literal["32", "bf16", "16"] = "32"
    """32, or mixed precision with bfloat16 or float16."""
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    """Of float32 products on GPUs: highest is float32, high TensorFloat-32, medium bfloat16."""
    compile: bool = False
    """torch.compile the network: the first step takes minutes, the others are to be faster."""
    devices: Devices | Literal["auto"] = "auto"
    """GPUs (or CPU processes) on every node; all there are by default."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices train together: each with the whole network (ddp, which auto takes), or each with a part of
    its weights, gradients and moments (fsdp), for networks that are too large for one."""
    nodes: Batch = 1
    """Machines, each started with the same command by torchrun or SLURM."""
    workers: Workers = 2
    """Processes that load pictures, for every device."""
    logger: LoggerName | list[LoggerName] = "tensorboard"
    """Where curves go beside metrics.csv: one or several of tensorboard, csv, wandb, mlflow, or [] for none."""
    log_every: Count = 50
    """Steps between two rows of the metrics file."""
    validate_every: Count = 150
    """Steps between two validations; each also writes the checkpoint that --resume continues from."""
    best: str = MIOU
    """The score whose best validation is kept: mIoU, Boundary IoU, or IoU of CLASS."""
    patience: Count | None = None
    """After so many validations without a better score the training ends; null takes all steps."""

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is scored and kept."""
        return self.ema is not None or self.swa_after is not None


@dataclass
class EvaluationConfig:
    """How pictures are predicted for a score."""

    mode: Literal["whole", "slide"] = "whole"
    """Whole pictures, or a window that slides over them."""
    crop: tuple[Side, Side] | None = None
    """Height and width of the sliding window; by default the training crop."""


@dataclass
class Recipe:
    """A training run from data to score."""

    data: str | None = None
    """A prepared data folder; by default generated scenes."""
    output: str = "runs/cssformer"
    """The run folder to make."""
    seed: Natural = 0
    """All randomness comes from it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """The generated pictures trained on when no data folder is given."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What training does to each picture."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The optimisation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How pictures are predicted for a score."""

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read a recipe that :meth:`save` wrote, or any YAML that sets some of its keys.

        Raises:
            UserError: no such file, not YAML, an unknown key or a value of a wrong type or range.
        """
        with _BUILDING:
            parser = make_parser()
            parser.add_argument("--config", action=ConfigFile)
            parser.add_class_arguments(cls)
            return cls.from_options(parse(parser, ["--config", str(path)], str(path)))

    @classmethod
    def from_options(cls, options: Namespace) -> "Recipe":
        """The recipe among parsed options.

        Raises:
            UserError: the range of augment.scale is upside down, or all losses are left out.
        """
        recipe = cls(**{item.name: getattr(options, item.name) for item in dataclasses.fields(cls)})
        recipe.require_sound()
        return recipe

    def require_sound(self) -> None:
        """Raise UserError if options contradict each other."""
        low, high = self.augment.scale
        if low > high:
            raise UserError(f"The recipe's augment.scale is {[low, high]}; the smaller number must come first.")
        loss = self.loss
        if not any((loss.cross_entropy, loss.focal, loss.dice, loss.tversky, loss.lovasz, loss.boundary)):
            raise UserError("The recipe's loss has nothing to minimise; give loss.cross_entropy or another a weight.")
        if self.training.thaw_after and (self.training.lora or not self.training.backbone_lr_factor):
            raise UserError(
                "The recipe's training.thaw_after thaws nothing with training.lora or a backbone_lr_factor of 0; leave "
                "it out."
            )

        training = self.training
        if training.ema is not None and training.swa_after is not None:
            raise UserError("The recipe's training.ema and swa_after are two averages; leave one of them out.")
        if training.strategy == "fsdp":
            others = {"ema": training.ema is not None, "swa_after": training.swa_after is not None}
            others |= {"compile": training.compile, "lora": training.lora is not None}
            others["optimizer muon"] = training.optimizer == "muon"
            if refused := next((name for name, asked in others.items() if asked), None):
                raise UserError(
                    f"The recipe's training.strategy fsdp takes no training.{refused}; leave one of them out."
                )

    def located(self) -> "Recipe":
        """The recipe with absolute paths, which finds its files from any folder."""
        data, weights = (path and str(Path(path).resolve()) for path in (self.data, self.model.weights))
        # What is no folder here is a bundled model's name or a hub id.
        init = self.model.init
        init = str(Path(init).resolve()) if init and Path(init).is_dir() and init not in bundled_models() else init
        model = dataclasses.replace(self.model, weights=weights, init=init)
        return dataclasses.replace(self, data=data, model=model)

    def inference(self) -> dict[str, Any]:
        """How pictures are predicted, as options of :func:`cssformer.inference.predict`."""
        return {
            "mode": self.evaluation.mode,
            "crop": list(self.evaluation.crop or self.augment.crop),
            "short_side": self.augment.short_side,
        }

    def save(self, path: Path) -> None:
        """Write the resolved recipe as YAML, readable by ``--config``."""
        atomic_text(path, yaml.safe_dump(_lists(dataclasses.asdict(self)), sort_keys=False, allow_unicode=True))


def _in_order(value: Any) -> Any:
    """Tables by their names."""
    return {key: _in_order(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


def _lists(value: Any) -> Any:
    """Tuples as lists, which is how YAML writes them."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
