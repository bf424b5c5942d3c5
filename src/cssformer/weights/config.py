"""What a saved model's config may say. It may come from anybody: every value is checked before anything is built."""

import re
from collections.abc import Callable, Collection
from typing import Any

from cssformer.data.channels import Channels
from cssformer.utils.errors import UserError

FORMAT = 2
"""Of config and weights; raised whenever those of before would mean something else."""

Rule = tuple[Callable[[Any], bool], str]


def _whole(low: int, high: int) -> Rule:
    wanted = f"a whole number from {low} to {high}" if low < high else str(low)
    return lambda value: type(value) is int and low <= value <= high, wanted


def _number(low: float, high: float) -> Rule:
    return lambda value: type(value) in (int, float) and low <= value <= high, f"a number from {low:g} to {high:g}"


def _listed(rule: Rule, count: int | None = None) -> Rule:
    holds, wanted = rule
    return (
        lambda value: isinstance(value, list) and all(map(holds, value)) and count in (None, len(value)),
        f"a list{'' if count is None else f' of {count}'}, each entry {wanted}",
    )


def _optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"null or {rule[1]}"


def _text(pattern: str, wanted: str) -> Rule:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, wanted


def _plain(value: Any, nested: int = 3) -> bool:
    """Whether it is what timm's arguments are: a number, a word, or a short list of these or of such lists."""
    if isinstance(value, list):
        return nested > 0 and len(value) <= 64 and all(_plain(item, nested - 1) for item in value)
    if isinstance(value, int | float):
        return abs(value) <= 65536
    return value is None or (isinstance(value, str) and len(value) <= 64 and value.isascii() and value.isprintable())


def _are_channels(value: Any) -> bool:
    try:
        return value.keys() <= {"values", "mean", "std", "shown"} and bool(Channels.read(value))
    except (AttributeError, LookupError, TypeError, ValueError):
        return False


_BOOLEAN: Rule = (lambda value: isinstance(value, bool), "true or false")
_NAME = _text(r"[\w.-]{1,100}", "a name")
_CLASS = _text(r"[^\x00-\x1f\ud800-\udfff]{1,200}", "a name of one line of at most 200 characters")
# Nothing may make timm load or fetch a file.
_FILES = {"pretrained", "weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
_ARGUMENTS: Rule = (
    lambda value: (
        isinstance(value, dict)
        and all(
            key not in _FILES and key.isidentifier() and _plain(key) and _plain(item) for key, item in value.items()
        )
    ),
    f"timm's arguments, numbers up to 65536, words and short lists, without {', '.join(sorted(_FILES))}",
)
_SIDES = _listed(_whole(1, 65536), 2)
_OPTIONAL_ARGUMENTS = _optional(_ARGUMENTS)
_OWN: Rule = (_plain, "a number up to 65536, a word, or a short list of these")
_NETWORK: dict[str, Rule] = {
    "backbone": _NAME,
    "num_classes": _whole(1, 65535),
    "in_channels": _whole(1, 1024),
    "mean": _listed(_number(-1e9, 1e9)),
    "std": _listed(_number(1e-9, 1e9)),
    "backbone_args": _OPTIONAL_ARGUMENTS,
    "channels": _whole(8, 8192),
    "heads": _whole(1, 1024),
    "points": _whole(1, 1024),
    "cia": _BOOLEAN,
    "fusion": _BOOLEAN,
    "fusion_stride": (lambda value: value in (4, 8, 16, 32) and type(value) is int, "4, 8, 16 or 32"),
    "msfe_depth": _whole(0, 64),
    "csf_depth": _whole(0, 64),
    "ffn_ratio": _whole(1, 16),
    "aux": _BOOLEAN,
    "dropout": _number(0, 1),
    "decoder": _NAME,
}
_INFERENCE: dict[str, Rule] = {
    "mode": (lambda value: value in ("whole", "slide"), "whole or slide"),
    "crop": _optional(_SIDES),
    "stride": _optional(_SIDES),
    "short_side": _optional(_whole(1, 65536)),
}
_CONFIG: dict[str, Rule] = {
    "format": _whole(FORMAT, FORMAT),
    "architecture": _NAME,
    "version": _NAME,
    "id": _text(r"[0-9a-f]{64}", "64 hexadecimal digits"),
    "network": (lambda value: isinstance(value, dict), "a table"),
    "classes": _optional(_listed(_CLASS)),
    "colours": _optional(_listed(_listed(_whole(0, 255), 3))),
    "raw_ids": _optional(_listed(_whole(0, 65535))),
    "channels": _optional((_are_channels, "a table of values (a type), mean and std (a number for each channel)")),
    "inference": (lambda value: isinstance(value, dict), "a table"),
    "backbone_licence": _optional(_CLASS),
    "multilabel": _BOOLEAN,
}


def check_config(config: Any, where: str, own: Collection[str] = ()) -> None:
    """Whether a config is one that :meth:`cssformer.weights.hub.HubModel.save_pretrained` may have written.

    Args:
        config: as it was read.
        where: what the message calls it.
        own: arguments that the network's class takes, which may be others than CSSFormer's.

    Raises:
        UserError: it is not, or is of another format; the key is named.
    """
    found = config.get("format", 1) if isinstance(config, dict) else None
    if type(found) is int and found != FORMAT and 0 < found < 1000:
        advice = "train the model again" if found < FORMAT else "update cssformer"
        raise UserError(f"{where} is of format {found}, this version reads format {FORMAT}; {advice}.")
    tables = [("", config, _CONFIG)]
    if isinstance(config, dict):
        tables += [
            ("network.", config.get("network"), {**dict.fromkeys({*own} - _FILES, _OWN), **_NETWORK}),
            ("inference.", config.get("inference", {}), _INFERENCE),
        ]
    for prefix, table, rules in tables:
        if not isinstance(table, dict):
            raise UserError(f"{where} does not hold a model's configuration.")
        for key, value in table.items():
            if key not in rules:
                advice = ", or import the class of your own that takes it" if prefix == "network." else ""
                raise UserError(f"{where} has an unknown key {prefix}{repr(key)[1:-1][:60]}; leave it out{advice}.")
            holds, wanted = rules[key]
            if not holds(value):
                raise UserError(f"{where}: {prefix}{key} must be {wanted}, not {repr(value)[:60]}.")
    required = {"format", "architecture", "network"} - config.keys() or {"backbone", "num_classes"} - config[
        "network"
    ].keys()
    if required:
        raise UserError(f"{where} lacks {', '.join(sorted(required))}.")
    for name in ("classes", "colours", "raw_ids"):
        values, count = config.get(name), config["network"]["num_classes"]
        if values is not None and len(values) != count:
            raise UserError(f"{where}: {len(values)} {name} are given for {count} classes.")
    count = config["network"].get("in_channels", 3)
    for place, table in (("network", config["network"]), ("channels", config.get("channels") or {})):
        for name in ("mean", "std"):
            if name in table and len(table[name]) != count:
                raise UserError(f"{where}: {place}.{name} must have {count} values, as network.in_channels says.")
