"""What each part of a network costs: parameters, multiply-adds, activation memory, time.

A GFLOP here is 10^9 multiply-adds, as the paper's framework counts. What is counted are products with learned weights
(linear layers and convolutions) and those of attention among tokens. What the sampling operator does stands on lines of
its own, the bilinear interpolation and what is then done with the samples (products with queries, weighted sums).
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cssformer.model import CSSFormer, SegmentationNetwork
from cssformer.ops import use_backend
from cssformer.utils.device import device_name, device_of, on_device, synchronize
from cssformer.weights.family import decoder_of

TITLES = {
    "backbone": "backbone",
    "lateral": "lateral",
    "cia": "CIA",
    "msfe": "MSFE",
    "csf": "CSF",
    "decoder": "decoder",
    "head": "head",
}
"""The attributes of a network that are its parts, in the order of the data, and what they are called."""

PAPER = {"CIA": 2.4, "MSFE + CSF": 39.9, "all": 42.3}
"""GFLOPs over the baseline at 480x480 that the paper states, for C = 256, M = 8 and K = 16."""

CORNERS = 4
"""Values that one bilinear sample is made of."""


@dataclass(frozen=True)
class Part:
    """One part of a network at inference on one picture.

    Attributes:
        name: of the part.
        parameters: how many it has.
        multiply_adds: of its linear layers, convolutions and attention among tokens.
        activation_bytes: what its forward pass keeps for the backward pass in training, in bytes.
        milliseconds: median time.
    """

    name: str
    parameters: int
    multiply_adds: int
    activation_bytes: int
    milliseconds: float

    def row(self) -> tuple[str, ...]:
        """Cells of a table: the name, millions, billions, megabytes and milliseconds."""
        counts = f"{self.parameters / 1e6:.2f}", f"{self.multiply_adds / 1e9:.2f}"
        return self.name, *counts, f"{self.activation_bytes / 1e6:.1f}", f"{self.milliseconds:.1f}"


@dataclass(frozen=True)
class Profile:
    """What one picture of ``size`` (height, width) costs.

    Attributes:
        parts: those the network has, in the order of the data.
        interpolation: multiply-adds of the sampling operator's bilinear samples, not part of any sum.
        milliseconds: median time of the whole network, up-sampling to the picture included.
        device: where the time was taken.
        comparable: the decoder and the size are those of :data:`PAPER`.
    """

    size: tuple[int, int]
    parts: tuple[Part, ...]
    interpolation: int
    milliseconds: float
    device: str
    comparable: bool

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def multiply_adds(self) -> int:
        return sum(part.multiply_adds for part in self.parts)

    @property
    def weighing(self) -> int:
        """Multiply-adds of the samples with queries and weights, not part of any sum: one for each value sampled."""
        return self.interpolation // CORNERS

    def over_baseline(self) -> dict[str, float]:
        """GFLOPs of the paper's modules, by the names of :data:`PAPER`."""
        cia, msfe, csf = (
            sum(part.multiply_adds for part in self.parts if part.name == name) / 1e9 for name in ("CIA", "MSFE", "CSF")
        )
        return {"CIA": cia, "MSFE + CSF": msfe + csf, "all": cia + msfe + csf}

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Tables for people, each with its heading first: the parts, and the modules beside the paper where it fits."""
        rest = self.milliseconds - sum(part.milliseconds for part in self.parts)
        memory = sum(part.activation_bytes for part in self.parts)
        whole = Part("sum", self.parameters, self.multiply_adds, memory, self.milliseconds)
        parts = [
            ("part", "parameters (M)", "GFLOPs", "activations (MB)", "time (ms)"),
            *(part.row() for part in self.parts),
            ("up-sampling, rest", "", "", "", f"{max(0.0, rest):.1f}"),
            whole.row(),
            ("interpolation of samples, besides", "", f"{self.interpolation / 1e9:.2f}", "", ""),
            ("weighing of samples, besides", "", f"{self.weighing / 1e9:.2f}", "", ""),
        ]
        if not self.comparable:
            return [parts]
        modules = [
            (name, f"{found:.2f}", f"{PAPER[name]:.1f}", f"{100 * (found / PAPER[name] - 1):+.1f} %")
            for name, found in self.over_baseline().items()
        ]
        return [parts, [("over the baseline", "GFLOPs", "paper", "difference"), *modules]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with both conventions: multiply-adds, and FLOPs of which each has two."""
        return {
            "size": list(self.size),
            "device": self.device,
            "parts": [{**asdict(part), "flops": 2 * part.multiply_adds} for part in self.parts],
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "flops": 2 * self.multiply_adds,
            "interpolation_multiply_adds": self.interpolation,
            "weighing_multiply_adds": self.weighing,
            "milliseconds": self.milliseconds,
            "over_baseline_gflops": self.over_baseline(),
            "paper_gflops": PAPER if self.comparable else None,
        }


def is_papers(model: SegmentationNetwork, size: tuple[int, int]) -> bool:
    """Whether decoder and size (height, width) are those whose cost is :data:`PAPER`."""
    return size == (480, 480) and decoder_of("base").items() <= model.hparams.items()


def profile(model: SegmentationNetwork, height: int, width: int, device: str = "cpu", repeats: int = 5) -> Profile:
    """Count and time a network on one picture; the auxiliary head, which is there in training only, is left out.

    Args:
        model: moved to the device, left in eval mode.
        height, width: of the picture in pixels, 32 at least.
        device: where time and activations are measured; "auto" is the fastest of this machine.
        repeats: how often the time is taken, after one round that is not.

    Raises:
        UserError: there is no such device.
    """
    size = (height, width)
    place = device_of(on_device(model, device))
    images = torch.rand(1, len(model.backbone.mean), *size, generator=torch.Generator().manual_seed(0)).to(place)
    counts = multiply_adds(model, size)
    memory = activations(model, images)
    seconds, whole = _times(model.eval(), images, repeats)
    parameters = {
        name: sum(parameter.numel() for parameter in getattr(model, name).parameters()) for name in _parts(model)
    }
    if isinstance(model, CSSFormer) and model.fusion_strides:
        parameters["msfe"] += model.scale_embed.numel()
    return Profile(
        size=size,
        parts=tuple(
            Part(TITLES[name], parameters[name], counts[name], memory[name], 1e3 * seconds[name])
            for name in _parts(model)
        ),
        interpolation=counts["interpolation"],
        milliseconds=1e3 * whole,
        device=device_name(str(place)),
        comparable=is_papers(model, size),
    )


def multiply_adds(model: SegmentationNetwork, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of one picture of the size, by the names of :data:`TITLES`, and of "interpolation".

    Counted by torch's own counter while a copy of the network without data runs, so that no backend's fused kernels
    hide anything and any size is quick.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    images = torch.empty(1, len(model.backbone.mean), *size, device="meta")
    sampling: dict[Any, Callable[..., int]] = {
        torch.ops.cssformer.ms_deform_sample: lambda value, shapes, positions, weights, **_: _sampled(value, positions),
        torch.ops.cssformer.ms_deform_attend: lambda query, key, value, shapes, positions, **_: (
            2 * _sampled(value, positions)
        ),
    }
    deformable = {torch.ops.torchvision.deform_conv2d: _deformable_flops}
    # The operator as one node; attention as the products it is made of.
    with (
        use_backend("numba"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping={**sampling, **deformable}) as counter,
    ):
        shadow(images)
    found = counter.get_flop_counts()
    counts = dict.fromkeys((*TITLES, "interpolation"), 0)
    root = type(model).__name__
    for name in _parts(model):
        for called, _ in _called(model, name):
            for operator, flops in found.get(f"{root}.{called}", {}).items():
                if operator in sampling:
                    counts["interpolation"] += flops
                else:
                    counts[name] += flops // 2
    return counts


def _sampled(value: torch.Size, positions: torch.Size) -> int:
    """Multiply-adds of bilinear samples: value (B, S, M, D), positions (B, N, M, L, K, 2)."""
    return CORNERS * value[-1] * positions[:-1].numel()


def _deformable_flops(image: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    """Of a deformable convolution, weight (O, I, h, w) and output (B, O, H, W), as of any other convolution."""
    return 2 * out_shape.numel() * weight[1:].numel()


def activations(model: SegmentationNetwork, images: Tensor) -> dict[str, int]:
    """Bytes that the forward pass keeps for the backward pass, by part; without parameters and masks of dropout."""
    # The graph is alive while this runs, so that no storage is used twice.
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = dict.fromkeys(TITLES, 0)
    current = [""]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if current[-1] and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept[current[-1]] += storage.nbytes()
        return tensor

    trained = model.training
    # In training mode BatchNorm may refuse a single picture.
    model.eval()
    with (
        torch.enable_grad(),
        _around(model, lambda name: current.append(name), lambda name: current.remove(name)),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = model(images)
    del output
    model.train(trained)
    return kept


def _times(model: SegmentationNetwork, images: Tensor, repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of each part and of the whole network."""
    rounds: list[dict[str, float]] = []

    def now() -> float:
        synchronize(str(images.device))
        return time.perf_counter()

    def begin(name: str) -> None:
        rounds[-1][name] -= now()

    def end(name: str) -> None:
        rounds[-1][name] += now()

    with torch.inference_mode(), _around(model, begin, end):
        for _ in range(repeats + 1):
            rounds.append(dict.fromkeys((*TITLES, "whole"), 0.0))
            begin("whole")
            model(images)
            end("whole")
    median = {name: statistics.median(times[name] for times in rounds[1:]) for name in rounds[0]}
    return median, median.pop("whole")


@contextmanager
def _around(model: SegmentationNetwork, before: Callable[[str], None], after: Callable[[str], None]) -> Iterator[None]:
    """Call ``before`` and ``after`` with a part's name around each of its forward passes."""
    hooks = []
    for name in _parts(model):
        for _, module in _called(model, name):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: before(name)))
            hooks.append(module.register_forward_hook(lambda *_, name=name: after(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(model: SegmentationNetwork) -> list[str]:
    return [name for name in TITLES if getattr(model, name, None) is not None]


def _called(model: SegmentationNetwork, part: str) -> list[tuple[str, nn.Module]]:
    """The modules of a part that the network calls, with their names: a list itself is never called, its items are."""
    module = getattr(model, part)
    if isinstance(module, nn.ModuleList):
        return [(f"{part}.{name}", item) for name, item in module.named_children()]
    return [(part, module)]
