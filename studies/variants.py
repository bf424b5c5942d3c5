"""What each study compares."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cssformer.utils.errors import UserError

Kind = Literal["modules", "points", "decoders"]

POINTS = (1, 2, 4, 8, 16, 32, 64)
"""Points per head and scale that the paper compares; it uses 16."""


@dataclass(frozen=True)
class Variant:
    """One network of a study.

    Attributes:
        name: of its folder.
        title: of its row.
        changes: fields of the recipe's model that make it.
        peer: whose decoder it has, see :data:`studies.baselines.networks.DECODERS`; CSSFormer's if None.
        paper: what the paper says it gains over the baseline, in points of mIoU.
    """

    name: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    peer: str | None = None
    paper: float | None = None


BASELINE = Variant("baseline", "baseline", {"cia": False, "fusion": False})
WHOLE = Variant("cssformer", "CSSFormer", {"cia": True, "fusion": True}, paper=3.86)
LIGHT = Variant("light", "CSSFormer light, from stride 16 on", {**WHOLE.changes, "fusion_stride": 16})
MODULES = (
    BASELINE,
    Variant("cia", "+ CIA", {"cia": True, "fusion": False}, paper=0.91),
    Variant("msfe-csf", "+ MSFE-CSF", {"cia": False, "fusion": True}, paper=2.97),
    WHOLE,
)
DECODERS = (
    WHOLE,
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


def points_variants(points: Sequence[int]) -> tuple[Variant, ...]:
    """CSSFormer with each number of points per head and scale.

    Raises:
        UserError: a number below 1.
    """
    if min(points) < 1:
        raise UserError(f"--points are 1 or more per scale, not {min(points)}.")
    return tuple(
        Variant(f"points-{count}", f"K = {count}", {**WHOLE.changes, "points": count}) for count in sorted(set(points))
    )


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
