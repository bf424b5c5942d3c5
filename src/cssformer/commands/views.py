"""The options of how pictures are looked at, which ``evaluate``, ``predict`` and ``serve`` share."""

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from cssformer.utils.options import Scale, Share, Side, add_device

VIEWS = ("mode", "crop", "stride", "short_side", "scales", "flip", "precision", "threshold", "device")
"""The options that :func:`add_views` adds."""
MANY_LOOKS, LONG_SIDE = 20, 2048
"""Looks at so many times a picture's pixels, or shorter sides of so many, are told before they are taken."""


def add_views(parser: ArgumentParser) -> None:
    """What is not given is done as the model was trained for."""
    group = parser.add_argument_group("How pictures are looked at, by default as the model was trained for")
    group.add_argument(
        "--mode",
        type=Literal["whole", "slide"] | None,
        help="Whole pictures or a sliding window.",
    )
    group.add_argument("--crop", type=tuple[Side, Side] | None, help="Height and width of the sliding window.")
    group.add_argument(
        "--stride", type=tuple[Side, Side] | None, help="From window to window, down and across; 2/3 of the crop."
    )
    group.add_argument("--short_side", type=Side | None, help="First resize until the shorter side has so many pixels.")
    group.add_argument("--scales", type=list[Scale], default=[1.0], help="Average the probabilities of these scales.")
    group.add_argument("--flip", type=bool, default=False, help="Average with the mirror image too.")
    group.add_argument(
        "--precision",
        type=Literal["32", "bf16", "16"] | None,
        help="Of the network's numbers; bf16 and 16 (bits) are faster on GPUs; 32 by default.",
    )
    group.add_argument(
        "--threshold",
        type=Share | None,
        help="Of networks of several classes a pixel: those of this probability are there; 0.5 by default.",
    )
    add_device(parser)


def note_cost(options: Namespace) -> None:
    """Say what looks at very many pixels take, before nothing is seen for long."""
    looks = sum(scale**2 for scale in options.scales) * (1 + options.flip)
    if looks >= MANY_LOOKS:
        print(f"note: these --scales look at {looks:,.0f} times a picture's pixels, and take as much longer.")
    if (side := options.short_side or 0) >= LONG_SIDE:
        print(
            f"note: --short_side {side} makes {side**2 / 1e6:,.0f} million pixels or more of each picture, and takes "
            f"{(side / 512) ** 2:,.0f} times as long as 512."
        )
