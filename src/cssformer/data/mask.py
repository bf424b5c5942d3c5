"""A mask as its file has it: ids, indices of a palette or colours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cssformer.utils.errors import UserError


@dataclass(frozen=True)
class Mask:
    """A mask as its file has it.

    Attributes:
        pixels: ids or palette indices, uint8 or uint16 (H, W), or colours, RGB uint8 (H, W, 3); upright.
        palette: RGB uint8 (n, 3) for palette indices.
        orientation: the EXIF orientation by which the file's pixels were turned upright, 1 to 8.
        transparent: where the mask is transparent or a GeoTIFF has no data, bool (H, W), upright; None if nowhere.
    """

    pixels: NDArray[Any]
    palette: NDArray[np.uint8] | None
    orientation: int
    transparent: NDArray[np.bool_] | None = None

    def ids(self, path: Path, behind: int | None = None) -> NDArray[Any]:
        """The ids (H, W): grey values, palette indices, or the channels of a grey RGB picture.

        Args:
            path: named in errors.
            behind: the value of transparent pixels.

        Returns:
            uint8 or uint16, or int32 if there are transparent pixels.

        Raises:
            UserError: the mask has colours, or transparent pixels and no value for them.
        """
        if self.transparent is not None and behind is None:
            raise UserError(f"{path} is transparent in places, so its ids are not known there; save it without alpha.")
        ids = self.pixels
        if ids.ndim == 3:
            ids = ids[..., 0]
            coloured = (self.pixels != ids[..., None]).any(-1)
            if (coloured if self.transparent is None else coloured & ~self.transparent).any():
                raise UserError(f"{path} is a colour picture, not class ids; convert it with `cssformer prepare`.")
        return np.ascontiguousarray(ids) if self.transparent is None else self._opaque(ids.astype(np.int32), behind)

    def colours(self, path: Path, behind: int = 0) -> NDArray[np.int32]:
        """The colours (H, W), packed as 0xRRGGBB; ``behind`` where they are transparent.

        Raises:
            UserError: a pixel's index lies beyond the palette; ``path`` is named.
        """
        if self.palette is not None and (last := int(self.pixels.max(initial=0))) >= len(self.palette):
            raise UserError(
                f"{path} has pixels of index {last}, but colours for 0 to {len(self.palette) - 1} alone; write its "
                "whole palette, or take its indices as ids."
            )
        return self._opaque(self._colours(), behind)

    def _opaque(self, values: NDArray[np.int32], behind: int | None) -> NDArray[np.int32]:
        if self.transparent is not None and behind is not None:
            values[self.transparent] = behind
        return values

    def _colours(self) -> NDArray[np.int32]:
        pixels = self.pixels
        if self.palette is not None:
            red, green, blue = self.palette.astype(np.int32).T
            return (red << 16 | green << 8 | blue).take(pixels)
        if pixels.ndim == 2:
            return np.minimum(pixels, 255).astype(np.int32) * 0x010101
        red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
        return red << 16 | green << 8 | blue
