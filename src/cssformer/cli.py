"""The command line: which command, its options, and how it ends. What takes time to import is imported within."""

import io
import os
import sys
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cssformer import __version__
from cssformer.utils.errors import UserError, is_out_of_memory
from cssformer.utils.garbage import kept_for_good
from cssformer.utils.malloc import keep_freed_memory
from cssformer.utils.stop import Interrupted, Stop

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from cssformer.commands import Command

INSTEAD = {
    **dict.fromkeys(("test", "eval", "val", "validate", "benchmark"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "segment"), "predict"),
    **dict.fromkeys(("fit", "finetune"), "train"),
    "visualize": "explain",
}
"""What other programs of the field call a command."""


EXTRAS = {
    "train": ("lightning", "tensorboard", "rich"),
    "study": ("segmentation_models_pytorch", "transformers", "matplotlib", "scipy"),
    "export": ("onnx", "onnxruntime", "onnxscript", "openvino"),
    "web": ("gradio", "fastapi", "uvicorn"),
    "formats": ("pycocotools", "rasterio", "shapely"),
    "hf": ("pyarrow",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "geo": ("rasterio",),
    "ray": ("ray",),
}
"""The optional packages of each extra in pyproject.toml."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 well, 1 wrong data found, 2 a user's mistake, 130 after Ctrl-C, 141 if nobody reads what is
        printed, 143 after SIGTERM or SIGHUP.
    """
    arguments = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show is no reason to stop.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Pillow's words on odd files would stand beside our sentences.
    warnings.filterwarnings("ignore", module="PIL")
    # On one core the two processes that load pictures by default would be told of at length, again and again.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    try:
        with Stop().listening():
            words, command = _find_command(arguments)
            if command is None:
                return 0
            if command.begins and sys.stderr.isatty() and not {"-h", "--help"}.intersection(arguments):
                print(command.begins, file=sys.stderr)
            keep_freed_memory()
            with kept_for_good():
                options = _parse(command, " ".join(words), arguments[len(words) :])
            code = command.run(options)
            sys.stdout.flush()
            return code
    except UserError as error:
        print(f"cssformer: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
        if extra is None:
            raise
        print(f'cssformer: This needs {module}; install it with: pip install "cssformer[{extra}]".', file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print("cssformer: The memory is full; take smaller crops, batches or networks.", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        # Of several processes that train, the first one speaks.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("cssformer: interrupted.", file=sys.stderr)
        return interrupted.code
    except BrokenPipeError:
        _print_no_more()  # as after `| head`
        return 141
    except OSError as error:
        # Of the system, such as a full disk under what is printed: what a command expects it tells itself.
        print(
            f"cssformer: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.", file=sys.stderr
        )
        _print_no_more()
        return 2


def _print_no_more() -> None:
    """Python would try once more at its end to print what is left."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _find_command(arguments: list[str]) -> tuple[list[str], "Command | None"]:
    """The command that the first words name, or None after help or the version was printed."""
    from cssformer.commands import COMMANDS
    from cssformer.utils.options import nearest

    if arguments[:1] == ["--version"]:
        print(f"cssformer {__version__}")
        return [], None
    for count in (1, 2):
        words = arguments[:count]
        if " ".join(words) in COMMANDS:
            return words, COMMANDS[" ".join(words)]
    asked = not arguments or arguments[0] in ("-h", "--help") or arguments[1:2] in (["-h"], ["--help"])
    kinds = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")] if arguments else []
    if asked:
        print("usage: cssformer COMMAND ...\n\nSemantic segmentation with the Cross-Scale Sampling Transformer.\n")
        print(_listed(COMMANDS, kinds or COMMANDS))
        print("\n`cssformer COMMAND --help` tells a command's options.")
        return [], None
    if kinds:
        raise UserError(f"`cssformer {arguments[0]}` is no whole command; there are\n{_listed(COMMANDS, kinds)}")
    word = INSTEAD.get(arguments[0], arguments[0])
    near = [name for name in COMMANDS if name == word] or nearest(word, COMMANDS) or list(COMMANDS)
    raise UserError(
        f"There is no command {arguments[0]!r}; there {'is' if len(near) == 1 else 'are'} {', '.join(near)}."
    )


def _listed(commands: "dict[str, Command]", names: Collection[str]) -> str:
    width = max(map(len, names))
    return "\n".join(f"  {name:{width}}  {commands[name].summary}" for name in names)


def _parse(command: "Command", name: str, arguments: list[str]) -> "Namespace":
    from cssformer.utils.atomic import require_writable
    from cssformer.utils.options import make_parser, parse

    parser = make_parser(f"cssformer {name}", command.summary)
    command.add_arguments(parser)
    parser.add_argument("--json", type=Path | None, default=None, help="Also write the result to this JSON file.")
    options = parse(parser, arguments, name)
    if command.presets is not None:
        options = parse(parser, [*command.presets(options), *arguments], name)
    if options.json is not None:
        # Who takes it for a switch gives it the next word, such as a picture.
        if options.json.is_file() and options.json.suffix.lower() != ".json":
            raise UserError(f"--json would replace {options.json}; give it a file that ends in .json, or a new one.")
        # Not only after hours of work.
        require_writable(options.json)
    return options


if __name__ == "__main__":
    sys.exit(main())
