"""Names in drawings: letters beyond ASCII, and scripts that no font here has."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from cssformer.visualize import drawing
from cssformer.visualize.drawing import FONT, legend


@pytest.fixture
def no_fontconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    drawing._fitting.cache_clear()


def drawn(name: str) -> np.ndarray:
    return legend([(name, (9, 9, 9))], 400)


@pytest.mark.usefixtures("no_fontconfig")
@pytest.mark.parametrize("letters", ["äöüßéèñåøçłčşğı", "µ–×°²€½“”…", "αβγδεζθλωΩΆ", "абвгджщыюяЇђ", "ạếữ"])
def test_letters_are_no_boxes(letters: str) -> None:
    """Each has a form of its own; boxes were all alike."""
    font = ImageFont.truetype(FONT, 15)
    forms = {bytes(font.getmask(letter)) for letter in (*letters, "\U0010ffff")}
    assert len(forms) == len(letters) + 1
    pictures = {drawn(letter).tobytes() for letter in letters}
    assert len(pictures) == len(letters)


@pytest.mark.usefixtures("no_fontconfig")
def test_letters_that_no_font_has_are_escaped() -> None:
    assert np.array_equal(drawn("道路 ä"), drawn("\\u9053\\u8def ä"))
    assert not np.array_equal(drawn("道路"), drawn("歩道"))


@pytest.mark.skipif(shutil.which("fc-match") is None, reason="fontconfig is not installed")
def test_the_systems_fonts_are_asked_for_other_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a font of ours that lacks what any font of the system has: Armenian here, Chinese elsewhere."""
    drawing._fitting.cache_clear()
    found = drawing._system_font("ա")
    if found is None or drawing._missing(ImageFont.truetype(found[0], 15, found[1]), "ա"):
        pytest.skip("no font of this system has Armenian letters")
    text, font = drawing._fitting("ա", 15)
    assert text == "ա" and font.path == found[0] != str(FONT)
