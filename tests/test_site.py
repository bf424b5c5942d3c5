"""The pages of the site that are made of the code, the site itself, and the notebook."""

import dataclasses
import importlib.util
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import cssformer
from cssformer.commands import COMMANDS
from cssformer.training.recipe import Recipe

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_key_has_a_row_with_default_and_meaning(pages: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (?:`(.*)`)? \|$", pages.recipe_keys(), re.MULTILINE)
    keys = [
        key
        for item in dataclasses.fields(Recipe)
        for key in (
            [inner.name for inner in dataclasses.fields(getattr(Recipe(), item.name))]
            if dataclasses.is_dataclass(getattr(Recipe(), item.name))
            else []
        )
    ]
    assert [key for key, *_ in rows] == ["data", "output", "seed", *keys]
    assert [row[2:] for row in rows if row[0] == "lr"] == [("a number from 0 to 1000000", "0.006")]


def test_every_command_and_option_is_told(pages: ModuleType) -> None:
    text = pages.commands()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(COMMANDS)
    assert "| `INPUTS` |" in text
    for section, command in zip(re.split(r"^## .*$", text, flags=re.MULTILINE)[1:], COMMANDS, strict=True):
        told = re.findall(r"^\| `(.+?)` \| (.+?) \| .* \| .* \|$", section, re.MULTILINE)
        taken = [action for action in pages.parsed(command) if action.dest.partition(".")[0] not in pages.SECTIONS]
        assert len(told) == len(taken), command
    assert re.search(r"^\| `--skip_existing` \| .+ \| true or false \| `false` \|$", text, re.MULTILINE)


def test_every_public_name_is_told(pages: ModuleType) -> None:
    text = pages.python()
    for _, name, package in pkgutil.iter_modules(cssformer.__path__):
        module = import_module(f"cssformer.{name}") if package else cssformer
        for item in getattr(module, "__all__", ()):
            if callable(getattr(module, item)):
                assert re.search(rf"^### {item}$", text, re.MULTILINE), f"{module.__name__}.{item}"


def test_docstrings_become_markdown(pages: ModuleType) -> None:
    def documented() -> None:
        """Do it, see :func:`cssformer.inference.predict` and ``x``.

        Args:
            first, second: what
                goes on here.

        Raises:
            UserError: it cannot be.
        """

    assert pages.docstring(documented).splitlines() == [
        "Do it, see `predict` and `x`.",
        *["", "", "**Args**", "", "- `first, second`: what", "  goes on here."],
        *["", "", "**Raises**", "", "- `UserError`: it cannot be."],
    ]


def test_links_out_of_docs_are_names(pages: ModuleType) -> None:
    text = "[the recipe](../configs/x.yaml), [`../src/y.py`](../src/y.py), [other](data.md#z), $t_i$ and `$HOME`"
    made = pages.on_page_markdown(text, page=SimpleNamespace(file=SimpleNamespace(src_uri="page.md")))
    assert made.startswith("the recipe (`configs/x.yaml`), `../src/y.py`, [other](data.md#z), <math")
    assert made.endswith("</math> and `$HOME`")
    deeper = SimpleNamespace(file=SimpleNamespace(src_uri="howto/page.md"))
    assert (
        pages.on_page_markdown("[a](../data.md), [b](../../src/b.py)", page=deeper) == "[a](../data.md), b (`src/b.py`)"
    )


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link[^>]*stylesheet[^>]*//", text), (
            page
        )


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples" / "first_model.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("PICTURES = 40", "PICTURES = 8").replace("STEPS = 300", "STEPS = 2")
    assert "PICTURES = 8" in notebook.cells[1].source and "STEPS = 2" in notebook.cells[1].source
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 4 and (tmp_path / "first_model" / "run" / "scores.json").is_file()
