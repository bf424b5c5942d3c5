"""Weight files of backbones as people have them, under timm's names."""

import inspect
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import load_state_dict
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from cssformer.backbones.names import State, official_names
from cssformer.backbones.outline import flat, outline
from cssformer.utils.errors import UserError

LEAST_SHARE = 0.9
"""Of a backbone's parameters that a file must hold."""

WRAPPERS = (
    *("module.", "_orig_mod.", "state_dict.", "teacher.", "student.", "model.", "network.", "net."),
    *("backbone.", "encoder.", "swin.", "dinov2.", "convnext."),
)
"""How other programs' files name what they wrap a backbone in."""

CONTAINERS = ("teacher", "student", "model_state_dict")
"""Beside those that timm knows, under which a checkpoint may hold its weights."""


def load_weights(body: nn.Module, path: Path, name: str, arguments: dict[str, Any]) -> str:
    """Load a weight file into a timm feature extractor; returns a sentence that tells how much fitted.

    The file may be timm's, or hold the names of the official Swin Transformer, ConvNeXt, DINO, DINOv2 and DINOv3, of
    torchvision, mmsegmentation, mmpretrain or EfficientNet-PyTorch, under any of ``WRAPPERS``, beside a decoder or
    none. Position tables of other sizes are interpolated, a first layer for grey pictures is repeated.

    Args:
        body: of ``timm.create_model(name, features_only=True)``.
        path: ``.safetensors``, or a file of torch that holds nothing but tensors and plain values.
        name: timm's name of the network.
        arguments: others that the network was created with.

    Raises:
        UserError: no such file, an unreadable one, or less than ``LEAST_SHARE`` of the parameters are in it.
    """
    state = _read(path, name)
    network = outline(name, arguments)
    examples = ", ".join([key for key, value in state.items() if value.ndim][:3]) or "nothing"
    try:
        state = _timm_names(state, network, name)
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError, AssertionError, TypeError) as error:
        raise UserError(f"The weight file {path} does not fit backbone {name}: {str(error)[:200]}") from error
    by_flat_name = {flat(key): value for key, value in state.items()}
    own = {key: value for key, value in body.state_dict().items() if value.is_floating_point()}
    found = {key: by_flat_name[flat(key)] for key in own if flat(key) in by_flat_name}
    other = next((key for key, value in found.items() if value.shape != own[key].shape), None)
    fitting = [key for key, value in found.items() if value.shape == own[key].shape]
    share = sum(own[key].numel() for key in fitting) / sum(value.numel() for value in own.values())
    reason = None
    if share < LEAST_SHARE:
        reason = f"{share:.0%} of its parameters are there, {LEAST_SHARE:.0%} are asked for"
    elif other is not None:
        reason = f"{other} is {tuple(found[other].shape)}, not {tuple(own[other].shape)}"
    if reason is not None:
        raise UserError(
            f"The weight file {path} does not fit backbone {name}: {reason}. The file has {examples}, ...; the "
            f"backbone {', '.join(list(own)[:3])}, ...."
        )
    body.load_state_dict(found, strict=False)
    missing = [key for key in own if key not in found]
    anew = f"; anew begin {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}" if missing else ""
    layers, used = {flat(key) for key, _ in network.named_modules()}, {flat(key) for key in found}
    parts = {key.partition(".")[0] for key in state if flat(key) in used}
    # Of a classifier nothing is used.
    left = [key for key in state if key.partition(".")[0] in parts and flat(key.rpartition(".")[0]) not in layers]
    if sum(state[key].numel() for key in left) > (1 - LEAST_SHARE) * sum(value.numel() for value in own.values()):
        anew += f"; {len(left)} more are of layers that it does not have ({left[0]}, ...), perhaps of a larger network"
    return f"{len(found)} of {len(own)} tensors of the backbone ({share:.1%} of its parameters) come from {path}{anew}"


def _read(path: Path, name: str) -> State:
    if not path.is_file():
        raise UserError(f"There is no weight file {path} for backbone {name}.")
    try:
        state: Any = load_state_dict(str(path), weights_only=True)
        for container in CONTAINERS:
            state = state[container] if isinstance(state.get(container), dict) else state
        tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:
        # The loaders' own words advise to load pickles without a check.
        raise UserError(
            f"The weight file {path} cannot be read: it is damaged, or neither .safetensors nor a file of torch with "
            "nothing but tensors."
        ) from error
    return tensors


def _timm_names(state: State, network: nn.Module, name: str) -> State:
    """The weights of a backbone under the names, and in the order of channels, of timm's network."""
    state = official_names(state, network, name)
    known = network.state_dict().keys()
    while not known & state.keys() and (inner := next((found for p in WRAPPERS if (found := _under(state, p))), None)):
        state = inner
    module = sys.modules[timm.model_entrypoint(name).__module__]
    names = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
    convert: Any = next((vars(module)[key] for key in names if key in vars(module)), None)
    if convert is not None:
        # Some take the weights alone; some print what they leave out.
        given = (state, network)[: len(inspect.signature(convert).parameters)]
        with redirect_stdout(io.StringIO()):
            state = convert(*given)
    first = f"{cast('Any', network).pretrained_cfg.get('first_conv')}.weight"
    if first in state and state[first].ndim == 4 and state[first].shape[1] == 1:
        state[first] = state[first].repeat(1, 3, 1, 1) / 3
    wanted = network.state_dict().get(first)
    if first in state and wanted is not None and wanted.shape[1] != state[first].shape[1] == 3:
        state[first] = adapt_input_conv(wanted.shape[1], state[first])
    return state


def _under(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
