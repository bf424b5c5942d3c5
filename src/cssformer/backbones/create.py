"""Backbones with the weights they start from: timm's own from the hub, or a local file."""

import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict
from timm.models._features import FeatureGetterNet
from torch import nn

from cssformer.backbones.pyramid import SimpleFeaturePyramid
from cssformer.utils.errors import UserError
from cssformer.weights.hub import HubUnreachable, require_hub

WRAPPERS = ("module.", "model.", "backbone.")
"""How other programs' files name what they wrap a backbone in, from the outside in."""


def create_body(name: str, pretrained: bool = False, weights: str | None = None, **arguments: Any) -> nn.Module:
    """A timm feature extractor with all its maps; a plain Vision Transformer under a :class:`SimpleFeaturePyramid`.

    Args:
        name: a timm model name.
        pretrained: with timm's own weights, from the Hugging Face hub.
        weights: with those of a local file (``.safetensors``, or a ``.pth`` holding plain tensors) instead; names may
            begin with ``module.``, ``model.`` and ``backbone.``.
        **arguments: passed on to ``timm.create_model``; of a plain ViT ``out_indices`` chooses the four blocks.

    Raises:
        UserError: no such model, no feature maps, or weights that cannot be had or do not fit.
    """
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), cutoff=0.6)
        alike = f"names alike: {', '.join(near)}" if near else "timm.list_models() tells their names"
        raise UserError(f"timm has no backbone named {name!r}; {alike}.")
    body = _create(name, pretrained, weights, {**_any_size(name), **arguments, "features_only": True})
    if isinstance(body, FeatureGetterNet) and len(set(body.feature_info.reduction())) == 1:
        return SimpleFeaturePyramid(body, "out_indices" in arguments)
    return body


def _any_size(name: str) -> dict[str, bool]:
    """The arguments by which timm's model takes pictures of any size, where it has such."""
    if "swin" in name:
        return {"strict_img_size": False}
    kinds = vars(sys.modules[timm.model_entrypoint(name).__module__]).values()
    networks = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, nn.Module)]
    dynamic = any("dynamic_img_size" in inspect.signature(network).parameters for network in networks)
    return {"dynamic_img_size": True} if dynamic else {}


def _create(name: str, pretrained: bool, weights: str | None, arguments: dict[str, Any]) -> nn.Module:
    try:
        if weights is not None:
            return _create_from_file(name, Path(weights), arguments)
        config = timm.get_pretrained_cfg(name)
        if pretrained and config is not None and config.hf_hub_id:
            require_hub(config.hf_hub_id, ("model.safetensors", "pytorch_model.bin"))
        with _quiet():
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except HubUnreachable as error:
        raise UserError(
            f"The pretrained weights of {name} cannot be had: {error}; give a file of them as weights (model.weights), "
            "or set pretrained (model.pretrained) to false, which needs many more steps."
        ) from error
    except (OSError, RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"
        if pretrained:
            raise UserError(
                f"The pretrained weights of {name} could not be had ({reason}); give a local file as weights, or set "
                "pretrained to false."
            ) from error
        given = {key: value for key, value in arguments.items() if key != "features_only"}
        raise UserError(
            f"Backbone {name} cannot be built as a feature pyramid with {str(given)[:200]}: {reason[:200]}."
        ) from error


def _create_from_file(name: str, path: Path, arguments: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise UserError(f"There is no weight file {path} for backbone {name}.")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:
        # The loaders' own words advise to load pickles without a check.
        raise UserError(
            f"The weight file {path} cannot be read: it is damaged, or neither .safetensors nor a file of torch with "
            "nothing but tensors."
        ) from error
    try:
        for prefix in WRAPPERS:
            inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            state = inner or state
        known = {key.replace(".", "_") for key in state}
        overlay = {"state_dict": state}
        with _quiet():
            body = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The weight file {path} does not fit backbone {name}: {message[:300]}") from error
    # timm loads some feature extractors without asking that any name agrees.
    own = [key for key in body.state_dict() if not key.endswith("num_batches_tracked")]
    if known.isdisjoint(key.replace(".", "_") for key in own):
        raise UserError(
            f"The weight file {path} holds no weight of backbone {name}: it has {', '.join(list(state)[:3])}, ...; "
            f"the backbone {', '.join(own[:3])}, ..."
        )
    return body


@contextmanager
def _quiet() -> Iterator[None]:
    """Without timm's words about classifiers left out, which a pyramid never has."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
