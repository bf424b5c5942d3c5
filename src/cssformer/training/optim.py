"""The learning rate: which parameter gets which, and how it moves with the steps."""

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from cssformer.backbones import trunk
from cssformer.model import SegmentationNetwork

# Of timm's backbones, whose feature extractors do not say so themselves.
POSITIONS = ("relative_position_bias_table", "pos_embed")


def parameter_groups(
    model: SegmentationNetwork, lr: float, weight_decay: float, backbone_lr_factor: float, offsets_lr_factor: float
) -> list[dict[str, object]]:
    """Up to six groups: backbone, sampling offsets and the rest, each with and without weight decay.

    Norms, biases (every vector or scalar) and embeddings (``model.no_weight_decay()``) are not decayed.
    """
    embeddings = model.no_weight_decay()
    pretrained = set(trunk(model.backbone).parameters())
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and name not in embeddings and not name.endswith(POSITIONS)
            factor = 1.0
            if parameter in pretrained:
                factor = backbone_lr_factor
            elif ".offsets." in name:
                factor = offsets_lr_factor
            groups.setdefault((factor, decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": weight_decay if decayed else 0.0}
        for (factor, decayed), parameters in groups.items()
    ]


def polynomial_decay(optimizer: AdamW, steps: int, warmup_steps: int, power: float) -> LambdaLR:
    """Linear warm-up from 1e-6 of the peak over ``warmup_steps``, then (1 - step/steps)^power, by optimiser step."""

    def factor(step: int) -> float:
        decay = (1 - min(step, steps) / steps) ** power
        if step < warmup_steps:
            return (1e-6 + (1 - 1e-6) * step / warmup_steps) * decay
        return decay

    return LambdaLR(optimizer, factor)
