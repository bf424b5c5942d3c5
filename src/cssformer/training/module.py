"""Training and validation steps, as Lightning runs them."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from cssformer.backbones import merged, trunk
from cssformer.inference import predict
from cssformer.inference.predictor import accelerated
from cssformer.inference.views import NotFinite, as_input
from cssformer.losses import SegmentationLoss, cross_entropy
from cssformer.losses.multilabel import mean_over_classes
from cssformer.metrics import ConfusionMatrix
from cssformer.metrics.boundary import count_by_distance, count_multilabel
from cssformer.model import Metadata, SegmentationNetwork, SegmentationOutput
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.training.depthwise import keep_depthwise_float32
from cssformer.training.optim import make_optimizer, parameter_groups, polynomial_decay
from cssformer.training.recipe import BOUNDARY_IOU, Recipe
from cssformer.utils.errors import UserError

Loss = Callable[[Tensor | SegmentationOutput, Tensor], Tensor]
"""Of what the network gives in training mode and labels (B, H, W) int64, -100 where ignored: a scalar."""


class SegmentationTask(L.LightningModule):
    """A network under a recipe and a :data:`Loss`; by default the paper's.

    Validation leaves ``confusion``, whether all class scores were ``finite``, an ``example``, where whole pictures are
    scored ``losses``, and where ``training.best`` is of it ``boundary`` (3, C), see
    :func:`cssformer.metrics.boundary.count_by_distance`.
    """

    def __init__(self, model: SegmentationNetwork, recipe: Recipe, loss: Loss | None = None) -> None:
        super().__init__()
        self.model = model
        self.loss = loss or SegmentationLoss(
            auxiliary_weight=recipe.training.auxiliary_weight, multilabel=model.metadata.multilabel
        )
        # As its input is: convolutions are faster so, and gradients get the weights' layout, as DDP wants.
        model.backbone.to(memory_format=torch.channels_last)
        keep_depthwise_float32(model.backbone)
        self.recipe = recipe
        self.backbone = (trunk(model.backbone),)
        if recipe.training.backbone_lr_factor == 0 and recipe.training.lora is None:
            self.backbone[0].requires_grad_(False)
        if recipe.training.grad_checkpointing:
            _checkpoint_gradients(model)
        if recipe.training.compile:
            # In place, so that names stay; copies, such as those that are scored, are not compiled.
            model.compile()
        self.train()

    def train(self, mode: bool = True) -> "SegmentationTask":
        """BatchNorms that shall keep their statistics stay in eval mode."""
        super().train(mode)
        if self.recipe.training.freeze_statistics:
            for part in self._batch_norms():
                part.eval()
        return self

    @property
    def metadata(self) -> Metadata:
        return self.model.metadata

    @property
    def plain(self) -> SegmentationNetwork:
        """The network as it is used and kept, LoRA's additions merged."""
        return merged(self.model)

    def whole(self) -> SegmentationNetwork:
        """:attr:`plain` with the weights of this moment, all of them; devices that share them call it together."""
        return self.plain

    def _batch_norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return [part for part in self.backbone[0].modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]

    def on_train_start(self) -> None:
        # A run may continue by another schedule.
        schedule = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(schedule, LambdaLR)
        schedule.base_lrs = [group["lr"] for group in parameter_groups(self.model, self.recipe.training)]
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, base, factor in zip(schedule.optimizer.param_groups, schedule.base_lrs, factors, strict=True):
            group["lr"], group["initial_lr"] = base * factor, base

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Dropout's randomness depends on the place in the run alone, so that a resumed run repeats it.
        torch.manual_seed(hash((self.recipe.seed, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Batch of ``image`` (B, C, H, W), uint8 or float32, and ``label`` (B, H, W) int16 -> the loss."""
        loss: Tensor = self.loss(self.model(as_input(batch["image"])), batch["label"].long())
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        # What is computed again for the gradients would move the statistics a second time.
        self.momenta = [(part, part.momentum) for part in self._batch_norms()]
        for part, _ in self.momenta:
            part.momentum = 0.0

    def on_after_backward(self) -> None:
        for part, momentum in self.momenta:
            part.momentum = momentum

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Without a gradient they neither move nor count in its norm; devices that train together need it computed.
        if self.global_step < self.recipe.training.thaw_after:
            for parameter in self.backbone[0].parameters():
                parameter.grad = None

    def on_validation_epoch_start(self) -> None:
        self.confusion = ConfusionMatrix(self.model.num_classes, self.device, self.metadata.multilabel)
        self.boundary = torch.zeros(3, self.model.num_classes, dtype=torch.int64, device=self.device)
        self.finite = True
        self.losses: list[Tensor] = []
        # In tuples, because Lightning would keep a module's weights a second time.
        self.scored = (self.whole(),)
        self.validated = (accelerated(self.scored[0]),)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One picture of its own size: ``image`` (1, C, H, W) and ``label`` (1, H, W) int16."""
        try:
            segmentation = predict(self, batch["image"], **self.model.metadata.inference)
        except NotFinite:
            # All devices stop at it together, in the end.
            self.finite = False
            return
        self.confusion.update(segmentation.labels, batch["label"].long())
        if self.recipe.training.best == BOUNDARY_IOU:
            said, true = (labels[0].int().cpu().numpy() for labels in (segmentation.labels, batch["label"]))
            count = count_multilabel if self.metadata.multilabel else count_by_distance
            self.boundary += torch.from_numpy(count(said, true, self.model.num_classes)[1]).to(self.device)
        if batch_idx == 0:
            self.example = batch["image"][0], segmentation.labels[0]
        if self.recipe.evaluation.mode == "whole":
            # At the logits' own size: all classes at a large picture's size would fill the memory.
            label = F.interpolate(batch["label"][None].float(), self.logits.shape[2:], mode="nearest-exact")
            loss = partial(mean_over_classes, cross_entropy, False) if self.metadata.multilabel else cross_entropy
            self.losses.append(loss(self.logits.float(), label[0].long()))

    def forward_logits(self, images: Tensor) -> Tensor:
        """The network's, remembered."""
        self.logits: Tensor = self.validated[0].forward_logits(images)
        return self.logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        training = self.recipe.training
        optimizer = make_optimizer(self.model, training)
        schedule = polynomial_decay(optimizer, training.steps, training.warmup_steps, training.power)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _checkpoint_gradients(model: SegmentationNetwork) -> None:
    """Have timm's backbone, MSFE and CSF compute what they keep again for the gradients.

    Raises:
        UserError: the backbone cannot.
    """
    for block in model.modules():
        if isinstance(block, MultiScaleFeatureEnhancement | CrossScaleFusion):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    for part in trunk(model.backbone).modules():
        if callable(switch := getattr(part, "set_grad_checkpointing", None)):
            # An assertion is timm's way to say that the architecture has none.
            with suppress(AssertionError):
                switch(True)
                return
    raise UserError(f"{model.hparams['backbone']} knows no training.grad_checkpointing; leave it out.")
