"""What ``check`` found as one HTML file, pictures within."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from cssformer.data.bands import read_pixels
from cssformer.data.channels import rgb_view
from cssformer.data.check import CheckReport
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.files import read_bytes
from cssformer.data.findings import Finding
from cssformer.data.image_io import read_ids
from cssformer.data.pair_facts import PairFacts
from cssformer.utils.atomic import atomic_text
from cssformer.utils.errors import UserError
from cssformer.visualize.drawing import Picture, colourise

_EXAMPLES, _SIZES = 4, 10
_HEIGHT = 150
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
section { border-left: 4px solid #f08c00; padding-left: 1rem; margin: 1.5rem 0 }
section.error { border-color: #e03131 }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; max-width: 100% }
img { max-width: 100% }
figcaption { font-size: 13px; color: #868e96; overflow-wrap: anywhere }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #dee2e6 }
td:nth-child(2), th:nth-child(2) { text-align: left }
i { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 2px }
"""


def write_page(
    report: CheckReport, folder: Path, path: Path, suspects: Sequence[tuple[str, Sequence[Picture]]] = ()
) -> None:
    """Write what was found in a folder as an HTML file that needs no other.

    Args:
        report: of ``folder``.
        path: the file.
        suspects: a caption and pictures of one height for each label that a network contradicts.

    Raises:
        UserError: the file cannot be written.
    """
    atomic_text(path, "\n".join(_page(report, folder, suspects)))


def _page(report: CheckReport, folder: Path, suspects: Sequence[tuple[str, Sequence[Picture]]]) -> Iterator[str]:
    name = escape(str(folder))
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    yield f"<h1>{name}</h1>"
    pictures = ", ".join(f"{count} {escape(split)}" for split, count in report.pictures.items())
    yield f"<p>Pictures: {pictures}. Errors: {len(report.errors)}. Warnings: {len(report.warnings)}.</p>"
    for finding in report.findings:
        yield from _section(finding, report.info)
    yield "<h2>Classes</h2>"
    heading, *rows = report.table()
    swatches = [f'<i style="background: rgb{colour}"></i>' for colour in report.info.colours]
    yield _table(heading, rows, swatches)
    yield f"<p>{report.ignored:.2%} of all pixels are ignored.</p><h2>Sizes</h2>"
    sizes = [(str(count), f"{width}x{height}") for (width, height), count in report.sizes.items()]
    yield _table(("pictures", "size"), sizes[:_SIZES])
    if len(sizes) > _SIZES:
        yield f"<p>And {len(sizes) - _SIZES} more.</p>"
    if suspects:
        yield "<h2>Labels that the network contradicts</h2><p>Picture, label and prediction.</p>"
        for caption, tiles in suspects:
            yield _figure(np.hstack(tiles), caption)


def _section(finding: Finding, info: DatasetInfo) -> Iterator[str]:
    kind = "error" if finding.wrong else "warning"
    yield f'<section class="{kind}"><p><b>{kind}</b> {escape(finding.text)}</p>'
    for example in finding.examples[:_EXAMPLES]:
        try:
            picture = rgb_view(read_pixels(example.image, info.channels)[0].pixels, info.channels)
            parts = [picture, *_label(example, info)]
        except UserError:
            continue
        caption = f"{example.split}: {example.image.name}"
        yield _figure(np.hstack([_small(part) for part in parts]), caption)
    yield "</section>"


def _label(example: PairFacts, info: DatasetInfo) -> Iterator[Picture]:
    if example.label is not None:
        ids = read_ids(read_bytes(example.label), example.label).astype(np.int32)
        yield colourise(ids, info.palette)


def _small(picture: Picture) -> Picture:
    size = max(1, round(_HEIGHT * picture.shape[1] / picture.shape[0])), _HEIGHT
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _figure(picture: Picture, caption: str) -> str:
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    source = f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"
    return f'<figure><img src="{source}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], swatches: Sequence[str] | None = None) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in heading) + "</tr>"]
    for number, row in enumerate(rows):
        first, *rest = (escape(cell) for cell in row)
        mark = swatches[number] if swatches else ""
        lines.append(f"<tr><td>{mark}{first}</td>" + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>")
    return "".join(lines) + "</table>"
