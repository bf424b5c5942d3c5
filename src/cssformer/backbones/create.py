"""Backbones with the weights they start from: timm's own from the hub, or a local file."""

import inspect
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from cssformer.backbones.adapter import ViTAdapter
from cssformer.backbones.checkpoint import load_weights
from cssformer.backbones.pyramid import SimpleFeaturePyramid
from cssformer.utils.console import quiet
from cssformer.utils.errors import UserError
from cssformer.weights.hub import HubUnreachable, require_hub


def create_body(name: str, pretrained: bool = False, weights: str | None = None, **arguments: Any) -> nn.Module:
    """A timm feature extractor with all its maps; a plain Vision Transformer under a pyramid.

    What :func:`cssformer.backbones.trunk` gives of it has an attribute ``origin``, a sentence about the weights, if
    there are any.

    Args:
        name: a timm model name.
        pretrained: with timm's own weights, from the Hugging Face hub.
        weights: with those of a local file instead, see :func:`cssformer.backbones.checkpoint.load_weights`.
        **arguments: passed on to ``timm.create_model``; of a plain ViT ``out_indices`` chooses the four blocks, and
            ``pyramid`` what is built over them: ``simple`` for a :class:`SimpleFeaturePyramid`, which is the default,
            ``adapter`` for a :class:`ViTAdapter`, ``extractors`` for one without injectors.

    Raises:
        UserError: no such model, no feature maps, or weights that cannot be had or do not fit.
    """
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), cutoff=0.6)
        alike = f"names alike: {', '.join(near)}" if near else "timm.list_models() tells their names"
        raise UserError(f"timm has no backbone named {name!r}; {alike}.")
    pyramid = arguments.pop("pyramid", None)
    if pyramid not in (None, "simple", "adapter", "extractors"):
        raise UserError(f"The pyramid over a plain ViT is simple, adapter or extractors, not {pyramid!r}.")
    arguments = {**_any_size(name), **arguments}
    body: Any = _create(name, pretrained and weights is None, {**arguments, "features_only": True})
    if weights is not None:
        body.origin = load_weights(body, Path(weights), name, arguments)
    elif pretrained:
        body.origin = f"The backbone's weights are timm's {name}; their licence: {first_licence(name, pretrained)}"
    if any(parameter.is_meta for parameter in body.parameters()):
        body.register_load_state_dict_post_hook(_compute_constants)
    if isinstance(body, FeatureGetterNet) and len(set(body.feature_info.reduction())) == 1:
        given = "out_indices" in arguments
        if pyramid in (None, "simple"):
            return SimpleFeaturePyramid(body, given)
        return ViTAdapter(body, given, injectors=pyramid == "adapter")
    if pyramid is not None:
        raise UserError(f"Backbone {name} has four scales of its own; leave the argument pyramid out.")
    return body


def first_licence(name: str, pretrained: bool, weights: str | None = None) -> str | None:
    """Of the weights that a backbone begins with: of timm's as timm states it; a file states none."""
    if not pretrained and weights is None:
        return None
    config = timm.get_pretrained_cfg(name) if weights is None else None
    return (config and config.license) or "not stated"


def _any_size(name: str) -> dict[str, bool]:
    """The arguments by which timm's model takes pictures of any size, where it has such."""
    if "swin" in name:
        return {"strict_img_size": False}
    kinds = vars(sys.modules[timm.model_entrypoint(name).__module__]).values()
    networks = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, nn.Module)]
    dynamic = any("dynamic_img_size" in inspect.signature(network).parameters for network in networks)
    return {"dynamic_img_size": True} if dynamic else {}


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        config = timm.get_pretrained_cfg(name)
        if pretrained and config is not None and config.hf_hub_id:
            require_hub(config.hf_hub_id, ("model.safetensors", "pytorch_model.bin"))
        # It tells of classifiers left out, which a pyramid never has.
        with quiet("timm.models._builder"):
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except HubUnreachable as error:
        raise UserError(
            f"The pretrained weights of {name} cannot be had: {error}; begin with the bundled network, "
            "--model.init animals, give a file of them, --model.weights FILE, or --model.pretrained false, which needs "
            "many more steps."
        ) from error
    except (OSError, RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"
        if pretrained:
            raise UserError(
                f"The pretrained weights of {name} could not be had ({reason}); give --model.weights FILE, or "
                "--model.pretrained false."
            ) from error
        given = {
            key: value
            for key, value in arguments.items()
            if (key, value) not in (("features_only", True), ("in_chans", 3))
        }
        raise UserError(
            f"Backbone {name} cannot be built as a feature pyramid with {str(given)[:200]}: {reason[:200]}."
        ) from error


def _compute_constants(body: nn.Module, _: Any) -> None:
    """After the meta device: have timm compute what it keeps out of the state, such as Swin's relative positions."""
    device = next(body.parameters()).device
    for part in body.modules():
        kept_out = {name for name in part._non_persistent_buffers_set if part._buffers[name] is not None}
        compute = getattr(part, "init_non_persistent_buffers", None)
        if kept_out and compute is None:
            raise UserError(
                f"timm {timm.__version__} does not compute {min(kept_out)} of this backbone anew after the meta "
                "device; build it elsewhere, or update timm."
            )
        for name in kept_out:
            part._buffers[name] = torch.empty_like(cast(Tensor, part._buffers[name]), device=device)
        if compute is not None:
            compute()
