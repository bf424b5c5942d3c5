"""The command ``cssformer explain``."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import LOADING, Command, write_json
from cssformer.commands.models import MODEL
from cssformer.utils.atomic import require_writable
from cssformer.utils.console import counted, percentage, show
from cssformer.utils.errors import UserError
from cssformer.utils.options import Natural, add_device

if TYPE_CHECKING:
    from cssformer.inference import Predictor

LARGEST_SHEET = 20
"""Rows of a sheet over a folder."""


def _add_explain(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument("image", type=Path, help="A picture, or with --class a folder of them.")
    parser.add_argument(
        "--at", type=tuple[Natural, Natural] | None, help="The pixel's X and Y; 0 0 is the picture's top left."
    )
    parser.add_argument(
        "--box",
        type=tuple[Natural, Natural, Natural, Natural] | None,
        help="Instead of a pixel all of a box: its left, top, width and height.",
    )
    parser.add_argument("--class", type=str | None, help="Instead of a pixel all that are predicted as this class.")
    parser.add_argument("--output", type=Path, required=True, help="The picture to write, .png or .jpg.")
    parser.add_argument(
        "--stride",
        type=Literal[4, 8, 16, 32] | None,
        help="Draw what the token of this stride looks at; the finest by default.",
    )
    add_device(parser)


def _explain(options: Namespace) -> int:
    from cssformer.data.files import require_picture_name
    from cssformer.inference import Predictor, explain
    from cssformer.inference.explain import table

    given = [name for name in ("at", "box", "class") if options[name] is not None]
    if len(given) != 1:
        raise UserError("What shall be explained? Give one of --at X Y, --box X Y WIDTH HEIGHT and --class NAME.")
    if options.image.resolve() in ((output := options.output.resolve()), *output.parents):
        raise UserError(f"{options.output} is the picture itself or lies among the pictures; give another output.")
    # Not only after the computation.
    require_picture_name(options.output)
    require_writable(options.output)
    predictor = Predictor.from_pretrained(options.model, options.device)
    if options.at is None:
        return _explain_region(options, predictor)
    explanation = explain(predictor, options.image, *options.at)
    explanation.save(options.output, options.stride)
    show(table(explanation.as_dict()["samples"]))
    name, confidence = explanation.label
    print(f"Pixel {options.at[0]} {options.at[1]}, {name} ({percentage(confidence)}): {options.output}")
    write_json(options, explanation.as_dict())
    return 0


def _explain_region(options: Namespace, predictor: "Predictor") -> int:
    import numpy as np

    from cssformer.data.files import is_picture
    from cssformer.data.image_io import read_size, write_image
    from cssformer.inference.explain import table
    from cssformer.inference.explain_region import explain_class, explain_region, heat_sheet, summary
    from cssformer.inference.sources import inputs_under

    if options.box is not None:
        left, top, width, height = options.box
        across, down = read_size(options.image)
        if left + width > across or top + height > down:
            raise UserError(f"The box reaches beyond {options.image}, which is {across} wide and {down} high.")
        mask = np.zeros((down, across), bool)
        mask[top : top + height, left : left + width] = True
        found, pictures = [explain_region(predictor, options.image, mask, "box")], [options.image]
    else:
        folder = options.image.is_dir()
        pictures = [path for path in inputs_under(options.image) if is_picture(path)] if folder else [options.image]
        found = explain_class(predictor, pictures, options["class"])
    write_image(options.output, heat_sheet(found[:LARGEST_SHEET], options.stride))
    rows = summary(found)
    show(table(rows))
    what = "the box" if options.box is not None else options["class"]
    drawn = f", of which {LARGEST_SHEET} are drawn" if len(found) > LARGEST_SHEET else ""
    print(f"Mean over {counted(len(found), 'picture')} of {len(pictures)} with {what}{drawn}: {options.output}")
    write_json(options, {"region": what, "pictures": len(found), "of": len(pictures), "samples": rows})
    return 0


EXPLAIN = Command("Draw where a pixel, a box or a class looks, on all scales.", _add_explain, _explain, begins=LOADING)
