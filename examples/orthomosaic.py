"""An orthomosaic, and polygons of a GIS, as tiles and masks for ``cssformer prepare folder``."""

import sys
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from rasterio.features import rasterize
from rasterio.windows import Window
from shapely.geometry import box


def main(raster: str, polygons: str, column: str, output: str, size: int = 512) -> list[str]:
    """Write ``images/ROW/ROW_COLUMN.tif``, ``masks/ROW/ROW_COLUMN.tif`` and ``classes.txt``; the classes' names.

    A pixel is of the polygon that its centre lies in, of the smallest if there are several, else ``background``. Each
    row of tiles has its own folder, so that validation is given whole rows. Tiles without data are left out.

    Args:
        raster: a GeoTIFF of any number of bands.
        polygons: a file that geopandas reads, in whatever coordinate system.
        column: where the polygons' classes stand.
        output: the folder to write into.
        size: height and width of a tile in pixels.
    """
    with rasterio.open(raster) as source:
        shapes = geopandas.read_file(polygons).to_crs(source.crs)
        if nameless := int(shapes[column].isna().sum()):
            sys.exit(f"{nameless} polygons of {polygons} have no {column}; give them one, or take them out.")
        shapes = shapes.iloc[np.argsort(-shapes.area.to_numpy())]
        classes = ["background", *sorted({*shapes[column]} - {"background"})]
        if not shapes.intersects(box(*source.bounds)).any():
            sys.exit(f"No polygon of {polygons} lies on {raster}.")
        numbered = [(shape, classes.index(name)) for shape, name in zip(shapes.geometry, shapes[column], strict=True)]
        for top in range(0, source.height, size):
            for left in range(0, source.width, size):
                window = Window(left, top, min(size, source.width - left), min(size, source.height - top))
                if not source.dataset_mask(window=window).any():
                    continue
                place = {"crs": source.crs, "transform": source.window_transform(window)}
                bands = source.read(window=window)
                mask = rasterize(numbered, bands.shape[1:], transform=place["transform"], dtype="uint8")
                name = f"{top // size:03}/{top // size:03}_{left // size:03}.tif"
                write(Path(output, "images", name), bands, nodata=source.nodata, **place)
                write(Path(output, "masks", name), mask[None], **place)
    text = "".join(f"{index} {name}\n" for index, name in enumerate(classes))
    Path(output, "classes.txt").write_text(text, encoding="utf-8")
    return classes


def write(path: Path, bands: np.ndarray, **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    form = {"count": count, "height": height, "width": width, "dtype": bands.dtype, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", **form, **profile) as file:
        file.write(bands)


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:]))
