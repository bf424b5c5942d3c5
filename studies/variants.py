"""What each study compares."""

import itertools
import json
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote

from jsonargparse import ArgumentParser

from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.options import make_parser, parse
from cssformer.weights.family import decoder_of

Kind = Literal["modules", "points", "decoders", "grid"]

POINTS = (1, 2, 4, 8, 16, 32, 64)
"""Points per head and scale that the paper compares; it uses 16."""


@dataclass(frozen=True)
class Variant:
    """One network of a study.

    Attributes:
        name: of its folder.
        title: of its row.
        changes: the keys of the recipe that make it, as ``model.points``, with their values.
        peer: whose decoder it has, see :data:`studies.baselines.networks.DECODERS`; CSSFormer's if None.
        paper: what the paper says it gains over the baseline, in points of mIoU.
    """

    name: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    peer: str | None = None
    paper: float | None = None

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with the variant's changes."""
        for key, value in self.changes.items():
            section, dot, name = key.rpartition(".")
            changed = replace(getattr(recipe, section), **{name: value}) if dot else value
            recipe = replace(recipe, **{section or name: changed})
        return recipe


BASELINE = Variant("baseline", "baseline", {"model.cia": False, "model.fusion": False})
WHOLE = Variant("cssformer", "CSSFormer", {"model.cia": True, "model.fusion": True}, paper=3.86)
LIGHT = Variant("light", "CSSFormer light, from stride 16 on", {**WHOLE.changes, "model.fusion_stride": 16})
SMALL, NANO = (
    Variant(name, f"CSSFormer {name}", {f"model.{key}": value for key, value in decoder_of(name).items()})
    for name in ("small", "nano")
)
MODULES = (
    BASELINE,
    Variant("cia", "+ CIA", {"model.cia": True, "model.fusion": False}, paper=0.91),
    Variant("msfe-csf", "+ MSFE-CSF", {"model.cia": False, "model.fusion": True}, paper=2.97),
    WHOLE,
)
DECODERS = (
    WHOLE,
    SMALL,
    NANO,
    LIGHT,
    BASELINE,
    Variant("fpn", "Semantic FPN", peer="fpn"),
    Variant("pspnet", "PSPNet", peer="pspnet"),
    Variant("deeplabv3plus", "DeepLabV3+", peer="deeplabv3plus"),
    Variant("upernet", "UPerNet", peer="upernet"),
    Variant("upernet512", "UPerNet 512", peer="upernet512"),
    Variant("segformer", "SegFormer MLP", peer="segformer"),
    Variant("dpt", "DPT", peer="dpt"),
    Variant("mask2former", "Mask2Former pixel decoder", peer="mask2former"),
    Variant("setr_mla", "SETR-MLA", peer="setr_mla"),
    Variant("fapn", "FaPN", peer="fapn"),
    Variant("segmenter", "Segmenter", peer="segmenter"),
)


def points_variants(points: Iterable[int]) -> tuple[Variant, ...]:
    """CSSFormer with each number of points per head and scale."""
    return tuple(
        Variant(f"points-{count}", f"K = {count}", {**WHOLE.changes, "model.points": count})
        for count in sorted(set(points))
    )


def grid_variants(vary: Iterable[str]) -> tuple[Variant, ...]:
    """Every combination of the values of some keys of the recipe.

    Args:
        vary: a key with its values in each, as ``training.lr=1e-3,3e-4`` or ``augment.crop=[64,64],[96,128]``.

    Raises:
        UserError: there is no such key, a value is of a wrong type or range, or the key is the study's own.
    """
    parser = make_parser()
    parser.add_class_arguments(Recipe)
    values: dict[str, list[Any]] = {}
    for word in vary:
        key, equals, listed = word.partition("=")
        if not equals:
            raise UserError(f"--vary takes KEY=VALUE,VALUE, not {word!r}.")
        if key in ("seed", "output", "model.init"):
            raise UserError(f"--vary takes any key of the recipe but seed, output and model.init, not {word!r}.")
        # Commas within brackets part the numbers of one value.
        values.setdefault(key, []).extend(
            _parsed(parser, key, value) for value in re.split(r",(?![^\[{]*[\]}])", listed)
        )
    variants: dict[str, Variant] = {}
    for combination in itertools.product(*values.values()):
        changes = dict(zip(values, combination, strict=True))
        words = [f"{key}={_written(value)}" for key, value in changes.items()]
        name = ",".join(quote(word, safe="=[], ") for word in words)
        variants[name] = Variant(name, " ".join(words), changes)
    return tuple(variants.values())


def _parsed(parser: ArgumentParser, key: str, value: str) -> Any:
    options = parse(parser, [f"--{key}={value}"], "--vary")
    try:
        return operator.attrgetter(key)(options)
    except AttributeError:
        raise UserError(f"--vary takes whole keys of the recipe, not {key!r}.") from None


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def choose(variants: Sequence[Variant], names: Sequence[str] | None) -> tuple[Variant, ...]:
    """The variants with these names, in the study's order; all of them if None.

    Raises:
        UserError: no variant has such a name.
    """
    known = [variant.name for variant in variants]
    for name in names or ():
        if name not in known:
            raise UserError(f"This study has no variant {name!r}; it has {', '.join(known)}.")
    return tuple(variant for variant in variants if names is None or variant.name in names)
