"""Where one pixel looks: the places that MSFE and CSF sample for it on all scales, with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cssformer.data.channels import Pixels
from cssformer.data.files import require_picture_name
from cssformer.data.image_io import write_image
from cssformer.data.transforms import resize
from cssformer.inference.prediction import Prediction
from cssformer.inference.predictor import Input, Predictor, taken
from cssformer.inference.views import SMALLEST, Options, as_input, evaluating, seen_sizes
from cssformer.model.cssformer import CSSFormer, pad
from cssformer.model.positions import Shapes
from cssformer.ops import Sampling, record_sampling
from cssformer.utils.console import percentage
from cssformer.utils.errors import UserError
from cssformer.visualize.attention import draw_places
from cssformer.visualize.drawing import Picture

Array = NDArray[np.floating]


@dataclass(frozen=True)
class SamplingMap:
    """What one module samples for the I = L tokens, one of each stride, that contain a pixel.

    A token has M heads, each of which looks at K points on every one of L scales, four in the paper. Places are (x, y)
    in pixels of the picture; (0, 0) is the centre of its first pixel.

    Attributes:
        module: "MSFE" or "CSF", numbered if the network has several.
        places: what is sampled, (I, M, L, K, 2); it may lie outside the picture.
        weights: (I, M, L, K), from 0 to 1; those of a head's L·K places sum to one. In MSFE the softmax of the linear
            layer's output, in CSF the attention softmax(q·k / √D).
        centres: the tokens' own places, (I, 2).
    """

    module: str
    places: Array
    weights: Array
    centres: Array

    def shares(self) -> Array:
        """How much of each token's weight lies on each scale, averaged over the heads: (I, L), rows sum to one."""
        return self.weights.sum(axis=3).mean(axis=1)

    def reach(self) -> Array:
        """Mean distance of the places from their token, weighted, in pixels of the picture: (I,)."""
        distances = np.linalg.norm(self.places - self.centres[:, None, None, None], axis=-1)
        return (self.weights * distances).sum(axis=(2, 3)).mean(axis=1)

    def outside(self, height: int, width: int) -> Array:
        """How much of each token's weight lies outside the picture of this size: (I,)."""
        beyond = (self.places < -0.5) | (self.places > np.array((width, height)) - 0.5)
        return (self.weights * beyond.any(axis=-1)).sum(axis=(2, 3)).mean(axis=1)


@dataclass(frozen=True)
class Explanation:
    """Where one pixel of a picture looks.

    Attributes:
        prediction: of the whole picture.
        x, y: the pixel, counted from 0, 0 at the picture's top left.
        maps: of each MSFE, then of each CSF.
        strides: of the L scales, the finest first.
        cells: (width, height) of a cell of each stride in pixels of the picture, (L, 2).
    """

    prediction: Prediction
    x: int
    y: int
    maps: tuple[SamplingMap, ...]
    strides: tuple[int, ...]
    cells: Array

    @property
    def label(self) -> tuple[str, float]:
        """The class predicted for the pixel, or several of them, and the prediction's confidence there."""
        assert self.prediction.confidence is not None
        return self.prediction.name_at(self.y, self.x), float(self.prediction.confidence[self.y, self.x])

    def picture(self, stride: int | None = None) -> Picture:
        """The places of the token of this stride, by default the finest, a row for each module.

        Returns:
            RGB uint8 (height, width, 3).

        Raises:
            UserError: MSFE and CSF have no tokens of this stride.
        """
        return draw_places(self, index_of(stride, self.strides))

    def save(self, path: str | Path, stride: int | None = None) -> None:
        """Write :meth:`picture` as PNG or JPEG, as the suffix of ``path`` says.

        Raises:
            UserError: the suffix names another format, the file cannot be written, or as :meth:`picture`.
        """
        require_picture_name(Path(path))
        write_image(Path(path), self.picture(stride))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the pixel, its class, and a row of figures for each module and token."""
        name, confidence = self.label
        rows = []
        for sampled in self.maps:
            outside = sampled.outside(*self.prediction.labels.shape[:2]).tolist()
            figures = zip(self.strides, sampled.shares().tolist(), outside, sampled.reach().tolist(), strict=True)
            for stride, shares, beyond, reach in figures:
                by_scale = dict(zip(map(str, self.strides), shares, strict=True))
                rows.append({"module": sampled.module, "stride": stride, "shares": by_scale})
                rows[-1] |= {"outside": beyond, "reach": reach}
        return {"at": [self.x, self.y], "class": name, "confidence": confidence, "samples": rows}


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The samples of :meth:`Explanation.as_dict`, or of a region's summary, as rows of text, the heading first."""
    scales = (f"on {stride}" for stride in rows[0]["shares"])
    figures = {name: words for name, words in (("inside", "in the region"), ("outside", "outside")) if name in rows[0]}
    heading = ("module", "token of stride", *scales, *figures.values(), "mean distance")
    parts = [(*row["shares"].values(), *(row[name] for name in figures)) for row in rows]
    return [
        heading,
        *(
            (row["module"], str(row["stride"]), *map(percentage, part), f"{row['reach']:.1f} pixels")
            for row, part in zip(rows, parts, strict=True)
        ),
    ]


def index_of(stride: int | None, strides: Sequence[int]) -> int:
    """The index of a stride's token, by default of the finest one's.

    Raises:
        UserError: MSFE and CSF have no tokens of this stride.
    """
    if stride is None:
        return 0
    if stride not in strides:
        own = ", ".join(map(str, strides))
        raise UserError(f"MSFE and CSF of this model have no tokens of stride {stride}; choose one of {own}.")
    return strides.index(stride)


def explain(predictor: Predictor, image: Input | Prediction, x: int, y: int) -> Explanation:
    """Find the places that a network samples for the tokens, one of each stride, that contain a pixel.

    The network sees the picture once, resized as the predictor does; where the predictor slides a window, it sees one
    window with the pixel as near to its middle as the picture's border allows.

    Args:
        predictor: with any network that has MSFE and CSF, trained or not.
        image: a file or pixels, as for :class:`Predictor`, or what it made of them, with its confidence.
        x, y: the pixel, counted from 0, 0 at the picture's top left.

    Raises:
        UserError: the pixel is not in the picture, the picture cannot be read, the network has no MSFE and CSF, or a
            prediction is given where the network takes other channels than a photograph's.
    """
    seen = seen_of(predictor, image)
    view, samplings = record(predictor, seen.pixels, x, y)
    here = [view.tokens_over(np.array([x]), np.array([y]), level) for level in range(len(view.strides))]
    tokens, centres = [int(token) for (token,), *_ in here], np.concatenate([centre for _, centre, _ in here])
    maps = []
    for name, sampling in samplings:
        weights_IMLK = sampling.weights_of(tokens)[0]
        positions_IMLK2 = sampling.positions[0, tokens]
        maps.append(
            SamplingMap(name, view.to_picture(positions_IMLK2.cpu().numpy()), weights_IMLK.cpu().numpy(), centres)
        )
    prediction = image if isinstance(image, Prediction) else predictor(seen)
    return Explanation(prediction, x, y, tuple(maps), view.strides, view.cells)


def seen_of(predictor: Predictor, image: Input | Prediction) -> Pixels:
    """What the network takes of a picture, or of the one that a prediction is of; raises as :func:`explain`."""
    if not isinstance(image, Prediction):
        return taken(image, predictor.channels)
    if predictor.channels is not None:
        raise UserError(f"The prediction holds a view of {predictor.channels} only; give the picture itself.")
    return Pixels(image.image, None)


def record(predictor: Predictor, pixels: Picture, x: int, y: int) -> "tuple[InputView, list[tuple[str, Sampling]]]":
    """What the network sees of the pixels around one of them, and what each module samples there, by its name.

    Raises:
        UserError: as :func:`explain`.
    """
    model = predictor.network
    if not isinstance(model, CSSFormer) or not (model.msfe or model.csf):
        raise UserError("This model has no MSFE and no CSF (fusion=False), so no pixel looks at other places.")
    height, width = pixels.shape[:2]
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"The pixel ({x}, {y}) is outside the picture, which is {width} wide and {height} high.")
    view = InputView.around(pixels, x, y, predictor.options, model.fusion_strides)
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        # A backbone may sample too.
        features = model.backbone(view.images.to(device))
        with record_sampling() as samplings:
            model.decode(features)
    names = [*_numbered("MSFE", len(model.msfe)), *_numbered("CSF", len(model.csf))]
    return view, list(zip(names, samplings, strict=True))


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {number}" for number in range(1, count + 1)]


@dataclass(frozen=True)
class InputView:
    """What the network sees of a picture.

    Attributes:
        images: (1, C, H, W) as the network takes them, padded to multiples of 32 as the network would.
        zoom: pixels of the view per pixel of the picture, (x, y).
        corner: the view's left and top edge in the resized picture.
        strides: of the scales looked at.
    """

    images: Tensor
    zoom: Array
    corner: Array
    strides: tuple[int, ...]

    @classmethod
    def around(
        cls, pixels: NDArray[Any], x: int, y: int, options: dict[str, Any], strides: tuple[int, ...]
    ) -> "InputView":
        """The view that holds the pixel under a predictor's options."""
        (height, width), looks = pixels.shape[:2], Options(**options)
        (size,) = seen_sizes(height, width, (1.0,), looks.short_side)
        images = as_input(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        if size != (height, width):
            images = resize(images, size)
        zoom = np.array((size[1] / width, size[0] / height))
        corner = np.zeros(2, int)
        if looks.mode == "slide":
            crop = np.array(looks.window[0])[::-1]
            last = np.maximum(0, np.array(size[::-1]) - crop)
            corner = np.clip(((np.array((x, y)) + 0.5) * zoom - crop / 2).astype(int), 0, last)
            (left, top), (right, below) = corner, corner + crop
            images = images[:, :, top:below, left:right]
        # As `predict` does for pictures that are too small, then as the network does.
        missing = [max(0, SMALLEST - side) for side in images.shape[2:]]
        images = F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
        return cls(pad(images), zoom, corner, strides)

    @property
    def shapes(self) -> Shapes:
        """(H, W) of each scale."""
        return tuple((self.images.shape[2] // stride, self.images.shape[3] // stride) for stride in self.strides)

    @property
    def cells(self) -> Array:
        """(width, height) of each scale's cell in pixels of the picture, (L, 2)."""
        return np.array(self.strides)[:, None] / self.zoom

    def tokens_over(
        self, x: NDArray[np.integer], y: NDArray[np.integer], level: int
    ) -> tuple[NDArray[np.int64], Array, NDArray[np.int64]]:
        """The indices of a scale's tokens over pixels (n,) of the picture, their places there (T, 2), and how many of
        the pixels each covers."""
        columns, rows = (
            ((along + 0.5) * zoom - corner) // self.strides[level]
            for along, zoom, corner in zip((x, y), self.zoom, self.corner, strict=True)
        )
        height, width = self.shapes[level]
        seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        cells, pixels = np.unique((rows * width + columns)[seen].astype(np.int64), return_counts=True)
        positions = np.stack((cells % width, cells // width), axis=1)
        centres = ((positions + 0.5) * self.strides[level] + self.corner) / self.zoom - 0.5
        start = sum(height * width for height, width in self.shapes[:level])
        return cells + start, centres.astype(np.float32), pixels

    def to_picture(self, positions: Array) -> Array:
        """Positions (..., L, K, 2) in pixels of each scale -> places in pixels of the picture."""
        strides = np.array(self.strides)[:, None, None]
        return (((positions + 0.5) * strides + self.corner) / self.zoom - 0.5).astype(np.float32)
