"""The page of ``cssformer serve``: drop a picture, look at it in several ways, click where a pixel looks."""

import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import cv2
import gradio as gr
import numpy as np
from fastapi import FastAPI
from gradio import processing_utils
from numpy.typing import NDArray

from cssformer.data.files import PICTURE_SUFFIXES
from cssformer.inference.prediction import Prediction
from cssformer.serve.answers import Save
from cssformer.serve.service import Busy, Service
from cssformer.utils.console import percentage
from cssformer.utils.errors import UserError
from cssformer.visualize.drawing import Picture, colourise

LONGEST = 1600
"""Longer side in pixels of what is shown; downloads have the picture's own size."""
CHECK_SECONDS, KEPT_SECONDS = 600, 3600
"""How often old uploads are deleted, and how old these are."""
# Never larger than it is: Gradio would tell the wrong pixel of a click.
CSS = """
.legend { list-style: none; padding: 0; }
.legend, .downloads { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.legend span { display: inline-block; width: 1rem; height: 1rem; border-radius: .2rem; margin-right: .4rem;
  vertical-align: -.15rem; border: 1px solid #868e96; }
#picture img { max-height: 75vh; }
#looks .image-frame { overflow-x: auto; justify-content: flex-start; }
#looks img { min-width: 68rem; height: auto; }
"""


def _grey(values: NDArray[np.floating] | None, largest: float = 1.0) -> Picture:
    assert values is not None
    return cv2.cvtColor(cv2.convertScaleAbs(values, alpha=255 / largest), cv2.COLOR_GRAY2RGB).astype(np.uint8)


VIEWS: dict[str, Callable[[Prediction, float], Picture]] = {
    "overlay": lambda found, alpha: found.overlay(alpha),
    "labels": lambda found, _: colourise(found.labels, found.colours),
    "confidence (white is certain)": lambda found, _: _grey(found.confidence),
    "entropy (white is uncertain)": lambda found, _: _grey(found.entropy, math.log(max(2, len(found.classes)))),
    "runner-up class": lambda found, _: colourise(
        found.labels if found.runner_up is None else found.runner_up, found.colours
    ),
}


async def _fetch_nothing(url: str, cache_dir: str) -> str:
    raise gr.Error("Addresses are not fetched; send a file.", print_exception=False)


def mount(app: FastAPI, service: Service, uploads: Path, max_bytes: int) -> FastAPI:
    """Add the page to an application, below its own routes.

    Args:
        app: the application.
        service: what predicts.
        uploads: the folder that Gradio keeps its files in.
        max_bytes: of an upload, which the browser is told.
    """
    page = _make_page(service, uploads)
    # Only `Blocks.launch` sets it, and without it any file of the server may be named as an upload.
    page.has_launched = True
    # Gradio would fetch what is named by an address in the place of an upload.
    processing_utils.async_ssrf_protected_download = _fetch_nothing
    # The default fonts are Google's.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=max_bytes,
        ssr_mode=False,
        theme=theme,
        css=CSS,
        pwa=False,
    )


def _make_page(service: Service, uploads: Path) -> gr.Blocks:

    async def told(function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, once its turn has come; what is wrong is told in the page."""
        try:
            with service.place():
                return await service.run(function, *arguments)
        except (UserError, Busy) as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None

    async def show(file: str | None, view: str, alpha: float) -> tuple[Picture | None, str]:
        return await told(_shown, service, uploads, Path(file), view, alpha) if file else (None, "")

    async def look(file: str, place: gr.SelectData) -> Picture:
        return await told(_looks, service, Path(file), *place.index)

    with gr.Blocks(title="cssformer", analytics_enabled=False, delete_cache=(CHECK_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(f"**{escape(service.model)}**: drop a picture, then click a pixel to see where it looks.")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                file = gr.File(label="Picture", file_types=list(PICTURE_SUFFIXES), height=140, elem_id="file")
                picture = gr.Image(show_label=False, format="png", buttons=["fullscreen"], elem_id="picture")
            with gr.Column(scale=1, min_width=300):
                view = gr.Radio(list(VIEWS), value="overlay", label="View", elem_id="view")
                opacity = gr.Slider(0, 1, 0.5, label="Opacity of the overlay", elem_id="opacity")
                facts = gr.HTML(elem_id="facts")
        looks = gr.Image(show_label=False, format="png", buttons=["fullscreen"], elem_id="looks")
        shown = {"inputs": [file, view, opacity], "outputs": [picture, facts], "api_visibility": "private"}
        empty = {"fn": lambda: (None, "", None), "outputs": [picture, facts, looks], "api_visibility": "private"}
        file.upload(**empty).then(show, **shown)
        file.clear(**empty)
        gr.on([view.input, opacity.release], show, **shown)
        picture.select(look, file, looks, api_visibility="private")
    page.queue(default_concurrency_limit=None)
    return page


def _shown(service: Service, uploads: Path, path: Path, view: str, alpha: float) -> tuple[Picture, str]:
    """A view of an uploaded picture, and its legend with the links to its files."""
    prediction = service.uploaded(path)
    pixels = VIEWS[view](prediction, alpha)
    height, width = pixels.shape[:2]
    pixels = cv2.resize(pixels, _fitting(width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    colour_of = dict(zip(prediction.classes, prediction.colours, strict=True))
    entries = "".join(
        f"<li><span style='background:rgb{colour_of[name]}'></span>{escape(name)} {escape(percentage(share))}</li>"
        for name, share in prediction.shares.items()
    )
    where = quote(str(path.relative_to(uploads)))
    links = "".join(f"<a download href='download?file={where}&save={save}'>{save}</a>" for save in get_args(Save))
    return pixels, f"<ul class=legend>{entries}</ul><p class=downloads>Download: {links}</p>"


def _looks(service: Service, path: Path, x: int, y: int) -> Picture:
    """Where the pixel looks that is at (x, y) of the picture as it is shown."""
    height, width = service.uploaded(path).labels.shape
    shown = _fitting(width, height)
    place = (int((at + 0.5) * side / small) for at, side, small in zip((x, y), (width, height), shown, strict=True))
    return service.explain(path, *place).picture()


def _fitting(width: int, height: int) -> tuple[int, int]:
    """Width and height as shown."""
    zoom = min(1.0, LONGEST / max(width, height))
    return max(1, round(width * zoom)), max(1, round(height * zoom))
