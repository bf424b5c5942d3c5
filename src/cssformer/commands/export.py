"""The command ``cssformer export``."""

import sys
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, arguments, write_json
from cssformer.commands.models import MODEL, note_unfinished
from cssformer.commands.studies import know_baselines
from cssformer.utils.console import percentage, show
from cssformer.utils.options import Side

BEGINS = "Loading PyTorch and the network; then the file is written, run and compared, which may take minutes ..."


def _add_export(parser: ArgumentParser) -> None:
    from cssformer.export.export import export_model

    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument(
        "--returns",
        type=Literal["logits", "probabilities", "labels", "confidence"],
        nargs="+",
        default=["logits"],
        help="What the file returns: logits of the cells of 4x4 pixels; at the picture's size probabilities, labels, "
        "and the labels' confidence.",
    )
    parser.add_argument("--size", type=tuple[Side, Side] | None, help="The file resizes to this height and width.")
    parser.add_argument("--short_side", type=Side | None, help="The file resizes until the shorter side is so long.")
    parser.add_function_arguments(export_model, skip={"model", "returns", "size", "short_side"})


def _export(options: Namespace) -> int:
    from cssformer.export.export import export_model
    from cssformer.export.parity import table

    note_unfinished(options.model)
    know_baselines()
    done = export_model(**arguments(options))
    show(table(done["parity"]))
    print(f"{done['runtime']} agrees with PyTorch; {done['megabytes']:.1f} MB written to {done['output']}")
    if "miou" in done:
        print(f"mIoU {percentage(done['miou'])} of the file, {percentage(done['network_miou'])} of the network")
    if done["note"]:
        print(f"note: {done['note']}", file=sys.stderr)
    write_json(options, done)
    return 0


EXPORT = Command("Write a network for ONNX Runtime, OpenVINO or torch.export.", _add_export, _export, begins=BEGINS)
