"""The commands of ``cssformer prepare``."""

from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, arguments, write_json
from cssformer.utils.console import show

if TYPE_CHECKING:
    from cssformer.prepare.benchmark import PreparedBenchmark
    from cssformer.prepare.folder import Prepared


def _tell(prepared: "Prepared | PreparedBenchmark", options: Namespace) -> int:
    show(prepared.table())
    write_json(options, prepared.as_dict())
    return 0


def _add_source(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("--source", type=Path, nargs="+", required=True, help=what)


def _add_prepare_folder(parser: ArgumentParser) -> None:
    from cssformer.prepare.folder import prepare_folder

    _add_source(parser, "The folder of both, or that of the pictures, then the masks.")
    parser.add_function_arguments(prepare_folder, skip={"source"})


def _prepare_folder(options: Namespace) -> int:
    from cssformer.prepare.folder import prepare_folder

    return _tell(prepare_folder(**arguments(options)), options)


def _prepare_benchmark(module: str, title: str, classes: tuple[int, ...] = (), meaning: str = "") -> Command:
    """The command of one file of ``prepare`` that reads a benchmark, perhaps with either number of classes."""

    def add_arguments(parser: ArgumentParser) -> None:
        from cssformer.prepare.benchmark import prepare_benchmark

        _add_source(parser, "The official archives, or folders of their files.")
        parser.add_function_arguments(prepare_benchmark, skip={"benchmark", "source"})
        if classes:
            parser.add_argument("--classes", type=Literal[classes], default=classes[0], help=meaning)

    def run(options: Namespace) -> int:
        from cssformer.prepare.benchmark import prepare_benchmark

        described = import_module(f"cssformer.prepare.{module}")
        given = arguments(options)
        benchmark = described.benchmark(given.pop("classes")) if classes else described.BENCHMARK
        return _tell(prepare_benchmark(benchmark, **given), options)

    return Command(f"Make a data folder of {title}.", add_arguments, run)


def _prepare_export(module: str, what: str, hub: bool = False) -> Command:
    """The command of one file of ``prepare`` that reads what an annotation tool exports, or what a hub has."""

    def add_arguments(parser: ArgumentParser) -> None:
        from cssformer.prepare.export import prepare_export

        of_hub = " Or OWNER/NAME on the Hugging Face hub." if hub else ""
        _add_source(parser, f"The export, a folder or an archive, and the pictures if they are elsewhere.{of_hub}")
        parser.add_function_arguments(prepare_export, skip={"read", "source"})
        parser.add_function_arguments(import_module(f"cssformer.prepare.{module}").read, skip={"members", "faults"})

    def run(options: Namespace) -> int:
        from cssformer.prepare.export import prepare_export

        described = import_module(f"cssformer.prepare.{module}")
        read, given = described.read, arguments(options)
        if hub:
            given["source"] = [described.from_hub(path) for path in given["source"]]
        own = {name: given.pop(name) for name in signature(read).parameters if name in given}
        return _tell(prepare_export(partial(read, **own), **given), options)

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
