"""Other programs' names of weights, in place of which timm's own converters take those of the official code."""

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cssformer.utils.errors import UserError

State = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_START = r"(?:^|(?<=\.))"
"""A name may stand below others."""


def _torchvision_stages(blocks: str, between: str) -> tuple[Rule, ...]:
    """``features``: 0 is the stem, odd numbers are the stages, even ones what lies between them."""

    def rename(found: re.Match[str]) -> str:
        number = int(found[1])
        return (between if number % 2 == 0 else blocks).format(number // 2, before=number // 2 - 1)

    return ((_START + r"features\.([1-9])\.", rename),)


_TRANSFORMERS_ATTENTION: tuple[Rule, ...] = (
    (r"\.attention\.(?:attention\.|self\.)?(?:query|q_proj)\.", ".attn.query."),
    (r"\.attention\.(?:attention\.|self\.)?(?:key|k_proj)\.", ".attn.key."),
    (r"\.attention\.(?:attention\.|self\.)?(?:value|v_proj)\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:self\.|relative_position_bias\.)?(relative_position)", r".attn.\1"),
)
_TRANSFORMERS_VIT: tuple[Rule, ...] = (
    (r"embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"(?:encoder\.|model\.)?layer\.(\d+)\.", r"blocks.\1."),
    *_TRANSFORMERS_ATTENTION,
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.up_proj\.", ".fc1."),
    (r"\.down_proj\.", ".fc2."),
    (_START + r"layernorm\.", "norm."),
)
FORMS: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    (  # Swin Transformers of mmsegmentation and mmpretrain
        r"\.attn\.w_msa\.qkv\.weight$",
        (
            (_START + r"stages\.", "layers."),
            (r"\.w_msa\.", "."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"patch_embed\.projection\.", "patch_embed.proj."),
        ),
    ),
    (  # plain ViTs of these
        _START + r"layers\.0\.ln1\.weight$",
        (
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (_START + r"layers\.(\d+)\.", r"blocks.\1."),
            (r"(\.\d+\.)ln(\d)\.", r"\1norm\2."),
            (_START + r"ln1\.", "norm."),
            (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
            (r"patch_embed\.projection\.", "patch_embed.proj."),
        ),
    ),
    (  # ConvNeXt of these
        r"\.depthwise_conv\.weight$",
        ((r"\.depthwise_conv\.", ".dwconv."), (r"\.pointwise_conv(\d)\.", r".pwconv\1.")),
    ),
    (  # Swin Transformers of torchvision
        _START + r"features\.1\.0\.attn\.qkv\.weight$",
        (
            (_START + r"features\.0\.0\.", "patch_embed.proj."),
            (_START + r"features\.0\.2\.", "patch_embed.norm."),
            *_torchvision_stages("layers.{0}.blocks.", "layers.{before}.downsample."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ),
    ),
    (  # ConvNeXt of torchvision
        _START + r"features\.1\.0\.layer_scale$",
        (
            (_START + r"features\.0\.", "downsample_layers.0."),
            *_torchvision_stages("stages.{0}.", "downsample_layers.{0}."),
            (r"\.block\.0\.", ".dwconv."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".pwconv1."),
            (r"\.block\.5\.", ".pwconv2."),
            (r"\.layer_scale$", ".gamma"),
            (_START + r"classifier\.", "head."),
        ),
    ),
    (  # plain ViTs of torchvision
        r"encoder\.layers\.encoder_layer_0\.ln_1\.weight$",
        (
            (_START + r"class_token$", "cls_token"),
            (_START + r"conv_proj\.", "patch_embed.proj."),
            (_START + r"encoder\.pos_embedding$", "pos_embed"),
            (_START + r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (_START + r"encoder\.ln\.", "norm."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
        ),
    ),
    (  # Swin Transformers of transformers
        r"\.blocks\.0\.attention\.(?:self\.)?(?:query|q_proj)\.weight$",
        (
            (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"embeddings\.norm\.", "patch_embed.norm."),
            (r"encoder\.layers\.", "layers."),
            *_TRANSFORMERS_ATTENTION,
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
    ),
    (  # ConvNeXt of transformers
        r"encoder\.stages\.0\.layers\.0\.dwconv\.weight$",
        (
            (r"embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
            (r"embeddings\.layernorm\.", "downsample_layers.0.1."),
            (r"encoder\.stages\.(\d)\.layers\.", r"stages.\1."),
            (r"encoder\.stages\.(\d)\.downsampling_layer\.", r"downsample_layers.\1."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (_START + r"layernorm\.", "norm."),
        ),
    ),
    (  # DINOv3 of transformers
        r"embeddings\.patch_embeddings\.weight$",
        ((r"embeddings\.register_tokens$", "storage_tokens"), *_TRANSFORMERS_VIT),
    ),
    (  # DINOv2 of transformers
        r"layer\.0\.attention\.(?:attention\.)?(?:query|q_proj)\.weight$",
        ((r"embeddings\.register_tokens$", "register_tokens"), *_TRANSFORMERS_VIT),
    ),
)
"""A name by which a form is told, and what is put in place of its names, one after the other."""


def official_names(state: State, network: nn.Module, name: str) -> State:
    """Weights under names, and in an order of channels, that timm's converters know; others as they are.

    Args:
        state: names and weights, below any prefix.
        network: timm's, on any device.
        name: timm's name of it.

    Raises:
        UserError: EfficientNet-PyTorch's weights, which pad as TensorFlow does, for a network that does not.
    """
    if any(re.search(_START + r"_blocks\.0\._depthwise_conv\.weight$", key) for key in state):
        if not name.startswith("tf_"):
            raise UserError(
                f"Weights of EfficientNet-PyTorch are padded as in TensorFlow: take the backbone tf_{name}."
            )
        return {_efficientnet(key, network): value for key, value in state.items()}
    rules = next((rules for tell, rules in FORMS if any(re.search(tell, key) for key in state)), ())
    renamed = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new.endswith(".gamma") and new != key:
            value = value.flatten()
        elif rules is FORMS[0][1] and ".downsample." in key:
            value = _concatenated(value)
        renamed[new] = value
    for query in [key for key in renamed if ".attn.query." in key]:
        parts = [renamed.pop(query.replace("query", part), None) for part in ("query", "key", "value")]
        # DINOv3's keys have no bias.
        known = [torch.zeros_like(cast("Tensor", parts[0])) if part is None else part for part in parts]
        renamed[query.replace("query", "qkv")] = torch.cat(known)
    return renamed


def _concatenated(value: Tensor) -> Tensor:
    """Patch merging's norm (4C,) or reduction (D, 4C) in the official order of its channels.

    ``nn.Unfold`` gives each channel's four places, row by row. The official code gives all channels of each place,
    column by column.
    """
    by_place = value.unflatten(-1, (-1, 2, 2))
    return by_place.movedim(-3, -1).transpose(-3, -2).flatten(-3)


def _efficientnet(key: str, network: nn.Module) -> str:
    """EfficientNet-PyTorch's name of a weight -> timm's."""
    plain = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    found = re.fullmatch(r"(.*?)(_blocks\.(\d+)\.)?(_\w+)(\..*)", key)
    if found is None:
        return key
    prefix, block, number, part, rest = found.groups()
    if block is None:
        return prefix + plain.get(part, part) + rest
    stages = enumerate(cast("Any", network).blocks)
    stage, place, own = [(stage, *item) for stage, blocks in stages for item in enumerate(blocks)][int(number)]
    parts = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_se_reduce": "se.conv_reduce",
        "_se_expand": "se.conv_expand",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    if not hasattr(own, "conv_pwl"):  # nothing is expanded
        parts |= {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"{prefix}blocks.{stage}.{place}.{parts.get(part, part)}{rest}"
