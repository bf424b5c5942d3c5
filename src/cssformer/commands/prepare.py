"""The commands of ``cssformer prepare``."""

from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, arguments, write_json
from cssformer.utils.console import show
from cssformer.utils.options import Natural, Share


def _add_prepare_folder(parser: ArgumentParser) -> None:
    from cssformer.prepare.folder import prepare_folder

    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        required=True,
        help="The folder of both, or that of the pictures, then the masks.",
    )
    parser.add_argument(
        "--classes",
        type=str,
        nargs="+",
        help="Names of the classes, in the order of their ids; colours are in the order of their R, G, B.",
    )
    parser.add_argument(
        "--ignore", type=str, nargs="+", help="Ids, colours (R,G,B) or names that are no class; 255 is ignored anyway."
    )
    parser.add_argument("--val_share", type=Share, default=0.1, help="Share of the pictures drawn for validation.")
    parser.add_argument("--seed", type=Natural, default=0, help="The draw of the validation split comes from it.")
    parser.add_function_arguments(prepare_folder, skip={"source", "classes", "ignore", "val_share", "seed"})


def _prepare_folder(options: Namespace) -> int:
    from cssformer.prepare.folder import prepare_folder

    prepared = prepare_folder(**arguments(options))
    show(prepared.table())
    write_json(options, prepared.as_dict())
    return 0


def _prepare_benchmark(module: str, title: str, classes: tuple[int, ...] = (), meaning: str = "") -> Command:
    """The command of one file of ``prepare`` that reads a benchmark, perhaps with either number of classes."""

    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument(
            "--source", type=Path, nargs="+", required=True, help="The official archives, or folders of their files."
        )
        parser.add_argument("--output", type=Path, required=True, help="The prepared folder to be made.")
        parser.add_argument(
            "--partial", type=bool, default=False, help="Take fewer pictures than there are officially."
        )
        if classes:
            parser.add_argument("--classes", type=Literal[classes], default=classes[0], help=meaning)

    def run(options: Namespace) -> int:
        from cssformer.prepare.benchmark import prepare_benchmark

        described = import_module(f"cssformer.prepare.{module}")
        given = arguments(options)
        benchmark = described.benchmark(given.pop("classes")) if classes else described.BENCHMARK
        prepared = prepare_benchmark(benchmark, **given)
        show(prepared.table())
        write_json(options, prepared.as_dict())
        return 0

    return Command(f"Make a data folder of {title}.", add_arguments, run)


def _prepare_export(module: str, what: str, hub: bool = False) -> Command:
    """The command of one file of ``prepare`` that reads what an annotation tool exports, or what a hub has."""

    def add_arguments(parser: ArgumentParser) -> None:
        from cssformer.prepare.export import prepare_export

        sources = "The export, a folder or an archive, and the pictures if they are elsewhere."
        sources += " Or OWNER/NAME on the Hugging Face hub." if hub else ""
        parser.add_argument("--source", type=Path, nargs="+", required=True, help=sources)
        parser.add_argument("--val_share", type=Share, default=0.1, help="Share of the pictures drawn for validation.")
        parser.add_argument("--seed", type=Natural, default=0, help="The draw of the validation split comes from it.")
        parser.add_function_arguments(prepare_export, skip={"read", "source", "val_share", "seed"})
        parser.add_function_arguments(import_module(f"cssformer.prepare.{module}").read, skip={"members", "faults"})

    def run(options: Namespace) -> int:
        from cssformer.prepare.export import prepare_export

        described = import_module(f"cssformer.prepare.{module}")
        read, given = described.read, arguments(options)
        if hub:
            given["source"] = [described.from_hub(path) for path in given["source"]]
        own = {name: given.pop(name) for name in signature(read).parameters if name in given}
        prepared = prepare_export(partial(read, **own), **given)
        show(prepared.table())
        write_json(options, prepared.as_dict())
        return 0

    return Command(f"Make a data folder of {what}.", add_arguments, run)


PREPARE: dict[str, Command] = {
    "prepare folder": Command("Make a data folder of pictures and masks.", _add_prepare_folder, _prepare_folder),
    "prepare coco": _prepare_export("coco", "COCO's JSON: instances, stuff or panoptic"),
    "prepare yolo": _prepare_export("yolo", "YOLO's polygons (data.yaml, labels/*.txt)"),
    "prepare voc": _prepare_export("voc", "PASCAL VOC's layout, as CVAT's segmentation masks"),
    "prepare labelme": _prepare_export("labelme", "labelme's JSON files"),
    "prepare cvat": _prepare_export("cvat", "CVAT's XML (CVAT for images 1.1)"),
    "prepare label-studio": _prepare_export("label_studio", "Label Studio's JSON"),
    "prepare hf": _prepare_export("hf", "a Hugging Face data set (parquet, disk or hub)", hub=True),
    "prepare ade20k": _prepare_benchmark("ade20k", "ADE20K (SceneParse150)"),
    "prepare cityscapes": _prepare_benchmark("cityscapes", "Cityscapes"),
    "prepare pascal-context": _prepare_benchmark(
        "pascal_context", "PASCAL Context", (59, 60), "60 count the background; their mIoU is about 5 points lower."
    ),
    "prepare coco-stuff-10k": _prepare_benchmark(
        "coco_stuff", "COCO-Stuff 10K", (171, 182), "182 keep eleven things that were never annotated."
    ),
}
