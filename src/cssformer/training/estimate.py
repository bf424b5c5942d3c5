"""What a pass of training takes, told before the first step instead of by a full memory."""

import copy
import math

import torch
from torch.nn.utils import parametrize

from cssformer.training.module import SegmentationTask
from cssformer.utils.errors import UserError
from cssformer.utils.memory import total_memory

SMALL_PASS = 2**19
"""Pixels of a pass up to which nothing is estimated."""
PROBE = 128
"""Side of the crop that is measured."""
GIB = 2**30


def kept_bytes(task: SegmentationTask, height: int, width: int) -> float:
    """What one crop keeps for its gradients in float32, by the pass of a small one on the CPU.

    Autograd's saved tensors are counted, but for weights; all others grow with the crop's area.

    Args:
        task: a network and its loss, on the CPU; it is left as it is.
        height, width: of the crop, in pixels.
    """
    task = copy.deepcopy(task).train()
    sides = min(height, PROBE), min(width, PROBE)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # The tensor is held, so that its place is nobody else's meanwhile.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with parametrize.cached(), torch.random.fork_rng([]):
        # Weights with LoRA's additions, once computed here, are cached.
        weights = [*task.parameters(), *(part.weight for part in task.modules() if isinstance(part, torch.nn.Linear))]
        own = {weight.untyped_storage().data_ptr() for weight in weights}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # Two, which BatchNorm takes however small the coarsest map is.
            task.loss(
                task.model(torch.rand(2, len(task.model.backbone.mean), *sides)),
                torch.zeros(2, *sides, dtype=torch.long),
            )
    total = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    return total / 2 * (height * width) / math.prod(sides)


def needs(task: SegmentationTask) -> tuple[int, float]:
    """Bytes of the network, and of each crop of a pass."""
    recipe = task.recipe
    # Weights and a moving average; of what learns also gradients and the two moments of AdamW.
    copies = 1 + (recipe.training.averages)
    fixed = sum((copies + 3 * parameter.requires_grad) * parameter.nbytes for parameter in task.parameters())
    return fixed, kept_bytes(task, *recipe.augment.crop) * (1 if recipe.training.precision == "32" else 0.5)


def fitting(needed: tuple[int, float], device: torch.device, most: int) -> int:
    """How many crops, of ``most``, leave a quarter of the device's memory to what is not counted; 1 at least.

    Args:
        needed: of :func:`needs`.
        device: to train on.
        most: crops of a step.
    """
    fixed, each = needed
    return min(max(1, int((0.75 * total_memory(device) - fixed) / each)), most)


def fitting_batch(task: SegmentationTask, device: torch.device) -> int:
    """The most crops of a pass that fit, see :func:`fitting`."""
    return fitting(needs(task), device, task.recipe.training.batch_size)


def require_memory(task: SegmentationTask, device: torch.device, device_batch: int, parts: int = 1) -> None:
    """Refuse a pass that cannot fit.

    Args:
        task: what is trained, on the CPU.
        device: to train on.
        device_batch: crops of a pass.
        parts: into how many the network is cut, of which the device holds one.

    Raises:
        UserError: the tensors of a pass alone are larger than the device's memory; what to lower is named.
    """
    height, width = task.recipe.augment.crop
    if device_batch * height * width <= SMALL_PASS:
        return
    fixed, each = needs(task)
    fixed //= parts
    memory = total_memory(device)
    if fixed + device_batch * each <= memory:
        return
    possible = int((memory - fixed) / each)
    if possible > 0:
        remedy = f"give a training.device_batch of at most {possible} (training.batch_size may stay as it is)"
    elif fixed < memory:
        remedy = "not even one fits: give a smaller augment.crop"
    else:
        remedy = "the network alone does not fit: give a smaller model.backbone or model.channels"
    needed, there = (f"{size / GIB:,.0f} GiB" for size in (fixed + device_batch * each, memory))
    raise UserError(
        f"A pass of {device_batch} crops of {height}x{width} takes about {needed} of memory, but {device.type} has "
        f"{there}; {remedy}."
    )
