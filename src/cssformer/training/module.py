"""Training and validation steps, as Lightning runs them."""

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from cssformer.inference import predict
from cssformer.metrics import ConfusionMatrix
from cssformer.model import SegmentationNetwork, segmentation_loss
from cssformer.training.optim import parameter_groups, polynomial_decay
from cssformer.training.recipe import Recipe


class SegmentationTask(L.LightningModule):
    """A network under a recipe. Validation leaves ``confusion`` and ``finite``."""

    def __init__(self, model: SegmentationNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        if recipe.training.backbone_lr_factor == 0:
            model.backbone.requires_grad_(False)

    def on_train_start(self) -> None:
        # A run may continue to another number of steps, which changes the rates.
        schedule = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(schedule, LambdaLR)
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, base, factor in zip(schedule.optimizer.param_groups, schedule.base_lrs, factors, strict=True):
            group["lr"] = base * factor

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Dropout's randomness depends on the place in the run alone, so that a resumed run repeats it.
        torch.manual_seed(hash((self.recipe.seed, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Batch of ``image`` (B, 3, H, W) uint8 and ``label`` (B, H, W) int64 -> the loss."""
        coarse, auxiliary = self.model.coarse_and_auxiliary(batch["image"].float() / 255)
        return segmentation_loss(coarse, auxiliary, batch["label"], self.recipe.training.auxiliary_weight)

    def on_validation_epoch_start(self) -> None:
        self.confusion = ConfusionMatrix(self.model.num_classes, self.device)
        self.finite: list[Tensor] = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One picture of its own size: ``image`` (1, 3, H, W) uint8 and ``label`` (1, H, W) int64."""
        segmentation = predict(self, batch["image"], **self.model.inference)
        self.confusion.update(segmentation.labels, batch["label"])

    def coarse(self, images: Tensor) -> Tensor:
        """The network's, remembering whether all logits were finite."""
        logits = self.model.coarse(images)
        self.finite.append(logits.isfinite().all())
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        training = self.recipe.training
        groups = parameter_groups(
            self.model,
            training.lr,
            training.weight_decay,
            training.backbone_lr_factor,
            training.offsets_lr_factor,
        )
        optimizer = AdamW(groups, lr=training.lr)
        schedule = polynomial_decay(optimizer, training.steps, training.warmup_steps, training.power)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
