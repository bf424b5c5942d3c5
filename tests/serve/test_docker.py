"""The Dockerfile's words, as far as they can be read without Docker."""

import json
import re
import shlex
from pathlib import Path

from cssformer.cli import _find_command, _parse
from cssformer.weights.bundled import bundled_models

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_it_serves_a_bundled_model() -> None:
    (entry,), words = (
        json.loads(re.findall(rf"^{kind} (.*)$", DOCKERFILE, re.MULTILINE)[0]) for kind in ("ENTRYPOINT", "CMD")
    )
    assert entry == "cssformer"
    name, command = _find_command(words)
    assert command is not None
    options = _parse(command, " ".join(name), words[1:])
    assert options.model in (bundled_models() or {"animals"}) and options.host == "0.0.0.0"
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [str(options.port)]


def test_what_it_copies_is_there_and_reaches_the_build() -> None:
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in shlex.split(line)}
    assert copied == admitted and all((ROOT / name).exists() for name in copied)
    # What the project's own description names must be there as the package is built.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(name in copied for name in re.findall(r'"(LICENSE|README.md|CHANGELOG.md)"', project))
    (extra,) = re.findall(r'pip install "\.\[(\w+)\]"', DOCKERFILE)
    assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_it_runs_as_nobody_special() -> None:
    assert DOCKERFILE.index("\nUSER cssformer\n") < DOCKERFILE.index("\nENTRYPOINT ")
