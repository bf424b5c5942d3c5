"""Hooks of mkdocs: the pages that are made of the code, the README and the changelog, and links out of docs/."""

import dataclasses
import inspect
import re
from argparse import OPTIONAL, SUPPRESS
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from cssformer.commands import COMMANDS
from cssformer.training.recipe import Recipe
from cssformer.utils.options import make_parser, values_of, written

ROOT = Path(__file__).parents[1]
PYTHON = (
    *("", ".inference", ".model", ".data", ".metrics", ".losses", ".export"),
    *(".ops", ".accelerate", ".backbones"),
)
"""Modules of the package whose ``__all__`` is the reference; what an earlier one has is not told again."""
WIDTH = 88
"""Columns of a signature in one line."""
SECTIONS = {item.name for item in dataclasses.fields(Recipe) if dataclasses.is_dataclass(item.default_factory)}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file holds."""
    made = {
        "index.md": of_root("README.md"),
        "changelog.md": of_root("CHANGELOG.md"),
        "reference/commands.md": commands(),
        "reference/recipe.md": recipe_keys(),
        "reference/python.md": python(),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Formulas become MathML, which browsers draw by themselves; of files outside docs/ the site has the names only."""
    markdown = re.sub(r"^\$\$(.+)\$\$$", lambda found: convert(found[1], "block"), markdown, flags=re.MULTILINE)
    markdown = re.sub(r"\$(?=\S)([^$`\n]+)(?<=\S)\$", lambda found: convert(found[1]), markdown)
    out = r"\.\./" * (1 + page.file.src_uri.count("/"))
    return re.sub(rf"\[([^\]]+)\]\({out}([^)]*)\)", named, markdown)


def named(link: re.Match[str]) -> str:
    text, target = link[1], link[2]
    return text if target.partition("#")[0] in text else f"{text} (`{target}`)"


def of_root(name: str) -> str:
    """A page that lies beside docs/: its links are turned as if it lay within."""
    text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", r"](../\1)", (ROOT / name).read_text(encoding="utf-8"))
    return text.replace("](../docs/", "](").replace("](../CHANGELOG.md)", "](changelog.md)")


def options(actions: list[Any]) -> Iterator[str]:
    """A table of arguments of a parser."""
    yield "| option | meaning | values | default |\n|---|---|---|---|"
    for action in actions:
        name = f"--{action.dest}" if action.option_strings else action.dest.upper()
        needed = action.required or not (action.option_strings or action.nargs == OPTIONAL)
        default = "required" if needed else "" if action.default is None else f"`{written(action.default)}`"
        cells = (f"`{name}`", action.help or "", values_of(action) or "", default)
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def parsed(name: str) -> list[Any]:
    parser = make_parser(f"cssformer {name}")
    COMMANDS[name].add_arguments(parser)
    return [action for action in parser._actions if action.help != SUPPRESS and action.dest not in ("help", *SECTIONS)]


def commands() -> str:
    """Every command with its options, as its ``--help`` has them."""
    parts = ["# Commands\n\n`cssformer COMMAND --help` tells the same. Each command takes `--json FILE` too."]
    for name, command in COMMANDS.items():
        actions = [action for action in parsed(name) if action.dest.partition(".")[0] not in SECTIONS]
        parts += [f"## {name}\n\n{command.summary}\n", "\n".join(options(actions)) if actions else "No options."]
        if name == "train":
            parts.append("And [every key of a recipe](recipe.md), as `--section.key VALUE`.")
        if name == "profile":
            parts.append("And every key of a recipe's [model](recipe.md#model), as `--model.key VALUE`.")
    return "\n\n".join(parts)


def recipe_keys() -> str:
    """Every key of a recipe with its default and meaning."""
    parts = [
        "# Recipe keys\n\nIn a YAML file (`--config FILE`), or as options of `cssformer train`, which win over files."
    ]
    names, actions = [item.name for item in dataclasses.fields(Recipe)], parsed("train")
    parts.append("\n".join(options([action for action in actions if action.dest in names])).replace("`--", "`"))
    for section in (name for name in names if name in SECTIONS):
        inside = [action for action in actions if action.dest.startswith(f"{section}.")]
        parts += [f"## {section}", "\n".join(options(inside)).replace(f"`--{section}.", "`")]
    return "\n\n".join(parts)


def python() -> str:
    """What the modules offer, from signatures and docstrings."""
    parts, told = ["# Python"], set()
    for name in PYTHON:
        module = import_module(f"cssformer{name}")
        parts.append(f"## cssformer{name}\n\n{docstring(module)}")
        for item in module.__all__:
            value = getattr(module, item)
            if id(value) not in told and callable(value):
                told.add(id(value))
                parts += entry(value, f"### {item}", item)
    return "\n\n".join(parts)


def entry(value: Any, heading: str, name: str) -> Iterator[str]:
    """Heading, signature and text of a function or class, and those of a class's own methods."""
    signature = inspect.signature(value)
    call = f"{name}{signature}"
    if len(call) > WIDTH:
        inside = "".join(f"    {parameter},\n" for parameter in signature.parameters.values())
        call = f"{name}(\n{inside})" + ("" if inspect.isclass(value) else f" -> {signature.return_annotation}")
    call = re.sub(r"\b(?:cssformer|torch|numpy|pathlib)\.[\w.]*\b(\w+)", r"\1", call)
    yield f"{heading}\n\n```python\n{call}\n```\n\n{docstring(value)}"
    if inspect.isclass(value):
        for method, own in vars(value).items():
            function = own.__func__ if isinstance(own, classmethod | staticmethod) else own
            if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
                yield from entry(function, f"#### {name}.{method}", f"{name}.{method}")


def docstring(value: Any) -> str:
    """A docstring of Google's form as Markdown."""
    text = inspect.getdoc(value) or ""
    text = re.sub(r":\w+:`~?(?:cssformer\.[\w.]*\.)?([\w.]+)`", r"`\1`", text).replace("``", "`")
    lines, section = [], False
    for line in text.splitlines():
        if heading := re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields):", line):
            section = True
            lines += ["", f"**{heading[1]}**", ""]
        elif section and (item := re.fullmatch(r" {4}(\S[^:]*): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            lines.append(f"  {line.strip()}" if lines[-1] else line.strip())
        else:
            section = section and not line
            lines.append(line)
    return "\n".join(lines)
