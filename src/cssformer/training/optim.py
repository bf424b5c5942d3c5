"""The learning rate: which parameter gets which, and how it moves with the steps."""

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

# Parameters that tell places, scales or classes apart are like biases: decay would pull all towards the origin.
EMBEDDINGS = ("relative_position_bias_table", "pos_embed", "scale_embed", "level_embed", "cls_emb")


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, backbone_lr_factor: float, offsets_lr_factor: float
) -> list[dict[str, object]]:
    """Up to six groups: backbone, sampling offsets and the rest of the decoder, each with and without weight decay.

    Norms, biases (every vector or scalar) and embeddings are not decayed.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(EMBEDDINGS)
            factor = 1.0
            if name.startswith("backbone."):
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
