"""The learning rate: which parameter gets which, and how it moves with the steps."""

from typing import Any

from timm.optim import Muon
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cssformer.backbones import layers_above, trunk
from cssformer.model import SegmentationNetwork
from cssformer.training.recipe import TrainingConfig

# Of timm's backbones, whose feature extractors do not say so themselves.
EMBEDDINGS = ("relative_position_bias_table", "pos_embed", "cls_token", "dist_token", "reg_token")


def make_optimizer(model: SegmentationNetwork, training: TrainingConfig) -> Optimizer:
    """AdamW, or Muon (Jordan et al., 2024), its steps scaled to AdamW's length (Liu et al., arXiv 2502.16982).

    Both so take the same learning rates.
    """
    groups = parameter_groups(model, training)
    if training.optimizer == "adamw":
        # Lightning refuses to clip the gradients of a fused one in mixed precision.
        return AdamW(groups, lr=training.lr, fused=training.precision == "32")
    return Muon(groups, lr=training.lr, nesterov=True, adjust_lr_fn="match_rms_adamw", betas=(0.9, 0.999))


def parameter_groups(model: SegmentationNetwork, training: TrainingConfig) -> list[dict[str, Any]]:
    """Backbone (each of its layers with ``layer_decay``), sampling offsets and the rest, with and without weight decay.

    Norms, biases (every vector or scalar) and embeddings (``model.no_weight_decay()``) are not decayed. Layer decay
    is that of BEiT, as ``timm.optim.param_groups_layer_decay`` has it, the decoder in the classifier's place. What
    LoRA adds learns at the decoder's rate.
    """
    embeddings = model.no_weight_decay()
    factors = _backbone_factors(model, training)
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and name not in embeddings and not name.endswith(EMBEDDINGS)
            offsets = training.offsets_lr_factor if ".offsets." in name else 1.0
            matrix = decayed and not name.startswith(("head.", "aux_head."))
            groups.setdefault((factors.get(parameter, offsets), decayed, matrix), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": training.lr * factor,
            "weight_decay": training.weight_decay if decayed else 0.0,
            # Of Muon; AdamW heeds it not.
            "use_fallback": not matrix,
        }
        for (factor, decayed, matrix), parameters in groups.items()
    ]


def _backbone_factors(model: SegmentationNetwork, training: TrainingConfig) -> dict[nn.Parameter, float]:
    """By how much the learning rate of each of the backbone's weights differs from the decoder's."""
    pretrained = trunk(model.backbone)
    weights = {name: value for name, value in pretrained.named_parameters() if ".parametrizations." not in name}
    if training.layer_decay == 1:
        return dict.fromkeys(weights.values(), training.backbone_lr_factor)
    above = layers_above(pretrained, model.hparams["backbone"], model.hparams["backbone_args"])
    return {
        value: training.backbone_lr_factor * training.layer_decay ** above.get(name, 0)
        for name, value in weights.items()
    }


def polynomial_decay(optimizer: Optimizer, steps: int, warmup_steps: int, power: float) -> LambdaLR:
    """Linear warm-up from 1e-6 of the peak over ``warmup_steps``, then (1 - step/steps)^power, by optimiser step."""

    def factor(step: int) -> float:
        decay = (1 - min(step, steps) / steps) ** power
        if step < warmup_steps:
            return (1e-6 + (1 - 1e-6) * step / warmup_steps) * decay
        return decay

    return LambdaLR(optimizer, factor)
