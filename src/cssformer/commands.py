"""The commands of the command line: the options of each, and what it calls and prints."""

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cssformer.check_command import CHECK
from cssformer.doctor import DOCTOR
from cssformer.explain_command import EXPLAIN
from cssformer.prepare.commands import PREPARE
from cssformer.score_commands import SCORE, add_by, add_scoring, counts_regions, tell_scores
from cssformer.train_command import TRAIN
from cssformer.training.recipe import Recipe
from cssformer.utils.atomic import require_writable
from cssformer.utils.command import Command, arguments, write_json
from cssformer.utils.console import counted, percentage, show
from cssformer.utils.errors import UserError
from cssformer.utils.options import (
    Batch,
    ConfigFile,
    Scale,
    Share,
    Side,
    add_device,
)
from cssformer.utils.processes import rank
from cssformer.weights.commands import MODEL, MODELS
from cssformer.weights.run_files import RECIPE

LOADING = "Loading PyTorch and the network ..."
MANY_LOOKS, LONG_SIDE = 20, 2048
"""Looks at so many times a picture's pixels, or shorter sides of so many, are told before they are taken."""

VIEWS = ("mode", "crop", "stride", "short_side", "scales", "flip", "precision", "threshold", "device")
"""The options that :func:`_add_views` adds."""

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def _add_views(parser: "ArgumentParser") -> None:
    """How pictures are looked at; what is not given is done as the model was trained for."""
    parser.add_argument(
        "--mode",
        type=Literal["whole", "slide"] | None,
        help="Whole pictures or a sliding window; by default as the model was trained for.",
    )
    parser.add_argument("--crop", type=tuple[Side, Side] | None, help="Height and width of the sliding window.")
    parser.add_argument(
        "--stride", type=tuple[Side, Side] | None, help="From window to window, down and across; 2/3 of the crop."
    )
    parser.add_argument(
        "--short_side", type=Side | None, help="First resize until the shorter side has so many pixels."
    )
    parser.add_argument("--scales", type=list[Scale], default=[1.0], help="Average the probabilities of these scales.")
    parser.add_argument("--flip", type=bool, default=False, help="Average with the mirror image too.")
    parser.add_argument(
        "--precision",
        type=Literal["32", "bf16", "16"] | None,
        help="Of the network's numbers; bf16 and 16 (bits) are faster on GPUs; 32 by default.",
    )
    parser.add_argument(
        "--threshold",
        type=Share | None,
        help="Of networks of several classes a pixel: those of this probability are there; 0.5 by default.",
    )
    add_device(parser)


def _note_unfinished(model: str) -> None:
    """Say that a run folder's model may still get better."""
    from cssformer.weights.hub import RUN_CHECKPOINTS, RUN_MODEL
    from cssformer.weights.run_files import SCORES

    run = Path(model)
    if (run / RUN_CHECKPOINTS).is_dir() and (run / RUN_MODEL).is_dir() and not (run / SCORES).exists():
        print(f"{model} has not finished its training; this is its best network so far.")


def _note_cost(options: "Namespace") -> None:
    """Say what looks at very many pixels take, before nothing is seen for long."""
    looks = sum(scale**2 for scale in options.scales) * (1 + options.flip)
    if looks >= MANY_LOOKS:
        print(f"note: these --scales look at {looks:,.0f} times a picture's pixels, and take as much longer.")
    if (side := options.short_side or 0) >= LONG_SIDE:
        print(
            f"note: --short_side {side} makes {side**2 / 1e6:,.0f} million pixels or more of each picture, and takes "
            f"{(side / 512) ** 2:,.0f} times as long as 512."
        )


def _add_evaluate(parser: "ArgumentParser") -> None:
    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument("--data", type=Path | None, help="A prepared data folder; by default the run's own.")
    parser.add_argument("--split", type=str, default="val", help="Which split is scored.")
    parser.add_argument("--output", type=Path | None, help="Write scores, tables and pictures into this folder.")
    parser.add_argument(
        "--submission",
        type=Path | None,
        help="Write PNGs with the source's ids into this folder, as test servers take them; needs no labels.",
    )
    _add_views(parser)
    add_scoring(parser)
    add_by(parser)


def _evaluate(options: "Namespace") -> int:
    from cssformer.training.score import score_model
    from cssformer.weights.run_files import SCORES

    know_baselines()

    if options.output is not None:
        # Not only after hours of work.
        require_writable(options.output / SCORES)
    _note_unfinished(options.model)
    _note_cost(options)
    found = score_model(
        options.model,
        options.data,
        options.split,
        submission=options.submission,
        scored=options.output is not None,
        dilation_ratio=options.dilation_ratio,
        regions=counts_regions(options),
        group_by=options.group_by,
        **{name: options[name] for name in VIEWS},
    )
    if isinstance(found, int):
        print(f"{found} files written to {options.submission}; without labels there is no score.")
        write_json(options, {"submission": str(options.submission), "pictures": found})
        return 0
    evaluation, data = found
    tell_scores(evaluation, data, options)
    return 0


def _add_predict(parser: "ArgumentParser") -> None:
    from cssformer.inference.files import predict_files

    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        help="Pictures, folders, videos, quoted patterns; - reads their paths from the standard input, one a line.",
    )
    _add_views(parser)
    parser.add_function_arguments(predict_files, skip={"model", "inputs", *VIEWS})


def _predict(options: "Namespace") -> int:
    from cssformer.inference.files import predict_files

    _note_unfinished(options.model)
    _note_cost(options)
    know_baselines()
    if Path("-") in options.inputs:
        listed = [Path(line) for line in sys.stdin.read().splitlines() if line]
        options.inputs = [*(path for path in options.inputs if path != Path("-")), *listed]
    done = predict_files(**arguments(options))
    if rank() > 0:
        # The first process tells of all.
        return 1 if done["failed"] else 0
    rows = sorted(((part, name) for name, part in done["shares"].items() if part), reverse=True)
    show([(name, percentage(part)) for part, name in rows], ("class", "share"))
    written = [counted(done[f"{kind}s"], kind) for kind in ("picture", "video") if done[f"{kind}s"]]
    print(f"{' and '.join(written) or 'nothing'} written to {done['output']}")
    if done["skipped"]:
        print(f"{counted(done['skipped'], 'file')} skipped, predicted before")
    if done["left_out"]:
        print(f"{counted(done['left_out'], 'other file')} left out")
    for note in done["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for sentence in done["failed"].values():
        print(f"error: {sentence}", file=sys.stderr)
    write_json(options, done)
    return 1 if done["failed"] else 0


def _add_export(parser: "ArgumentParser") -> None:
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


def _export(options: "Namespace") -> int:
    from cssformer.export.export import export_model
    from cssformer.export.parity import table

    _note_unfinished(options.model)
    know_baselines()
    done = export_model(**arguments(options))
    heading, *rows = table(done["parity"])
    show(rows, heading)
    print(f"{done['runtime']} agrees with PyTorch; {done['megabytes']:.1f} MB written to {done['output']}")
    if "miou" in done:
        print(f"mIoU {percentage(done['miou'])} of the file, {percentage(done['network_miou'])} of the network")
    write_json(options, done)
    return 0


def _add_serve(parser: "ArgumentParser") -> None:
    from cssformer.serve.serve import serve

    parser.add_argument("model", type=str, help=MODEL)
    parser.add_function_arguments(serve, skip={"model", "views", "begun"})
    _add_views(parser)


def _serve(options: "Namespace") -> int:
    from cssformer.serve.serve import serve

    _note_unfinished(options.model)
    know_baselines()

    def begun(address: str) -> None:
        print(f"{options.model} is served at {address}, for programs described at {address}docs; Ctrl-C ends.")
        if options.host not in ("127.0.0.1", "localhost", "::1") and options.token is None:
            print("note: everyone who reaches this machine may use it; --token WORD asks for a word.", file=sys.stderr)
        sys.stdout.flush()
        write_json(options, {"address": address})

    given = arguments(options)
    serve(views={name: given.pop(name) for name in VIEWS}, begun=begun, **given)
    return 0


def _from_studies(module: str) -> Any:
    """A module of studies, which lie beside the package in a clone, and are not part of an installed one."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / "studies" / "__init__.py").is_file():
        raise UserError("Studies are not part of the installed package; clone the repository and install it with -e.")
    if str(clone) not in sys.path:
        sys.path.append(str(clone))
    return import_module(f"studies.{module}")


def know_baselines() -> None:
    """Let the networks of studies be loaded by name, where there are studies."""
    with suppress(UserError):
        _from_studies("baselines.networks")


def _study_command(kind: str, summary: str) -> Command:
    def run(options: "Namespace") -> int:
        from cssformer.utils.stop import Interrupted

        try:
            write_json(options, _from_studies("cli").run(options, kind))
        except Interrupted as interrupted:
            print("Stopped; the same command goes on.", file=sys.stderr)
            return interrupted.code
        return 0

    return Command(summary, lambda parser: _from_studies("cli").add_arguments(parser, kind), run)


def _add_profile(parser: "ArgumentParser") -> None:
    from cssformer.metrics.profile import PAPERS

    parser.add_argument("run", type=Path | None, nargs="?", help="A run folder, whose recipe's network is taken.")
    parser.add_argument("--size", type=list[Side], default=[480], help="The picture's height and width in pixels.")
    parser.add_argument("--classes", type=Batch, default=150, help="How many classes are told apart.")
    add_device(parser, "cpu")
    parser.add_argument("--config", action=ConfigFile, help="A YAML recipe; by default the network is the paper's.")
    parser.add_class_arguments(Recipe)
    # The paper's network, where neither a config nor an option says otherwise.
    parser.set_defaults({f"model.{name}": None for name in ("backbone", *PAPERS)})


def _own_recipe(options: "Namespace") -> list[str]:
    if options.run is None:
        return []
    if not (options.run / RECIPE).is_file():
        raise UserError(f"{options.run} is no run folder, it holds no {RECIPE}; give one, or --config FILE.")
    return ["--config", str(options.run / RECIPE)]


def _profile(options: "Namespace") -> int:
    from cssformer.metrics.profile import PAPERS, profile, untrained

    if len(options.size) > 2:
        raise UserError("--size takes a height and a width.")
    for name, value in {"backbone": "swin_tiny_patch4_window7_224", **PAPERS}.items():
        if getattr(options.model, name) is None:
            setattr(options.model, name, getattr(Recipe().model, name) if options.config else value)
    model = untrained(Recipe.from_options(options).model, options.classes)
    found = profile(model, options.size[0], options.size[-1], options.device)
    for heading, *rows in found.tables():
        show(rows, heading)
        print()
    write_json(options, found.as_dict())
    return 0


COMMANDS: dict[str, Command] = {
    **PREPARE,
    "check": CHECK,
    "train": TRAIN,
    "evaluate": Command("Score a trained network.", _add_evaluate, _evaluate, begins=LOADING),
    **SCORE,
    "predict": Command("Label pictures, folders of pictures and videos.", _add_predict, _predict, begins=LOADING),
    "study modules": _study_command("modules", "Train with and without the paper's modules."),
    "study points": _study_command("points", "Train with several numbers of points."),
    "study decoders": _study_command("decoders", "Train the decoder among its peers."),
    "study grid": _study_command("grid", "Train with every combination of some options' values."),
    "profile": Command("Count and time each part of a network.", _add_profile, _profile, _own_recipe),
    "export": Command("Write a network for ONNX Runtime, OpenVINO or torch.export.", _add_export, _export),
    "serve": Command("Serve a page for people and an endpoint for programs.", _add_serve, _serve),
    **EXPLAIN,
    **MODELS,
    **DOCTOR,
}
