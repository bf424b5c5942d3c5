"""The command ``cssformer calibrate``."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import LOADING, Command, write_json
from cssformer.commands.models import MODEL
from cssformer.commands.studies import know_baselines
from cssformer.utils.atomic import require_writable
from cssformer.utils.console import show
from cssformer.utils.errors import UserError
from cssformer.utils.options import add_device


def _add_calibrate(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument("--data", type=Path | None, help="A prepared data folder; by default the run's own.")
    parser.add_argument("--split", type=str, default="val", help="Which split is looked at; not the one trained on.")
    parser.add_argument("--output", type=Path | None, help="Write the calibrated network into this model folder.")
    add_device(parser)


def _calibrate(options: Namespace) -> int:
    from cssformer.metrics.calibration import COLDEST, HOTTEST, calibrate, with_temperature
    from cssformer.model import CSSFormer
    from cssformer.training.score import open_model
    from cssformer.weights.hub import CONFIG

    if options.output is not None:
        if options.output.exists():
            raise UserError(f"{options.output} is there already; give another output.")
        require_writable(options.output / CONFIG)
    know_baselines()
    predictor, data, _ = open_model(options.model, options.data, options.split, options.device)
    network = predictor.network
    if options.output is not None and not isinstance(network, CSSFormer):
        raise UserError(f"The model in {options.model} is no CSSFormer, so it is only measured; leave out --output.")
    found = calibrate(predictor, data)
    fitted, tried = found.pictures
    print(f"Temperature {found.temperature:.3f}, fitted on {fitted} pictures; on {tried} others:")
    errors, losses = (tuple(f"{value:.4f}" for value in pair) for pair in (found.error, found.loss))
    show([("", "before", "after"), ("calibration error", *errors), ("loss", *losses)])
    if found.is_open:
        print(
            f"note: the temperature is at the end of those tried, {COLDEST:g} to {HOTTEST:g}: these pictures do not "
            "tell it, as nearly all of their pixels are labelled right, or hardly any; calibrate on others.",
            file=sys.stderr,
        )
    if options.output is not None and isinstance(network, CSSFormer):
        with_temperature(network, found.temperature).save_pretrained(options.output)
    write_json(options, found.as_dict())
    return 0


CALIBRATE = Command("Tell how far confidence can be believed, and mend it.", _add_calibrate, _calibrate, begins=LOADING)
