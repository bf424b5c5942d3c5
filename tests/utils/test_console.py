"""Tables and words in the terminal: names come out as they are."""

import pytest

from cssformer.utils.console import percentage, plain_console, show

NAMES = ["road [wet]", "road [/wet]", ":car:", "[red]x", "[1]"]


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show([("class", "share"), *((name, "1 %") for name in NAMES)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["class        share", *(f"{name:11}  1 %" for name in NAMES)]
    for name in NAMES:
        plain_console().print(name)
    assert capsys.readouterr().out.splitlines() == NAMES


def test_columns_stand_below_each_other_and_lines_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    show([("道路", "a" * 300), ("car", "b")])
    assert capsys.readouterr().out == f"道路  {'a' * 300}\ncar   b\n"
    show([])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0 %"),
        (1e-9, "< 0.1 %"),
        (0.0004999, "< 0.1 %"),
        (0.0005, "0.1 %"),
        (0.25, "25.0 %"),
        (0.9994, "99.9 %"),
        (1 - 1e-9, "> 99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_that_is_there_is_not_nothing(value: float, words: str) -> None:
    assert percentage(value) == words
