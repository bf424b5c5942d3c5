"""Which pixels libraries give to a polygon, against the rule "centre inside" (shapely).

    python benchmarks/polygons.py

300 star-shaped polygons of 3 to 11 corners in pictures of 64x48; libraries that are not installed are left out.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw

HEIGHT, WIDTH, COUNT = 48, 64, 300
ROWS, COLUMNS = np.indices((HEIGHT, WIDTH)) + 0.5
Drawer = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


def star(rng: np.random.Generator) -> NDArray[np.float64]:
    count = rng.integers(3, 12)
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, count)), rng.uniform(5, 22, count)
    return np.stack([32 + radii * np.cos(angles), 24 + radii * np.sin(angles)], 1)


def pycocotools(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    from pycocotools import mask

    return mask.decode(mask.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH))[..., 0] > 0


def rasterio(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    return import_module("rasterio.features").rasterize([shapely.Polygon(points)], (HEIGHT, WIDTH)) > 0


def scikit_image(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    return import_module("skimage.draw").polygon2mask((HEIGHT, WIDTH), points[:, ::-1])


def pillow(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    picture = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(picture).polygon([(x, y) for x, y in points], fill=1, outline=1)
    return np.array(picture) > 0


def opencv(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    return cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [points.astype(np.int32)], 1) > 0


def opencv_rounded(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    return opencv(np.round(points))


def supervision(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    return import_module("supervision").polygon_to_mask(points.astype(int), (WIDTH, HEIGHT)) > 0


LIBRARIES: dict[str, tuple[str, Drawer]] = {
    "pycocotools": ("pycocotools", pycocotools),
    "rasterio rasterize": ("rasterio", rasterio),
    "scikit-image polygon2mask": ("scikit-image", scikit_image),
    "Pillow polygon (labelme)": ("pillow", pillow),
    "OpenCV fillPoly (Ultralytics)": ("opencv-python-headless", opencv),
    "OpenCV fillPoly, rounded": ("opencv-python-headless", opencv_rounded),
    "supervision": ("supervision", supervision),
}


def main() -> None:
    rng = np.random.default_rng(0)
    polygons = [points for _ in range(COUNT) if shapely.Polygon(points := star(rng)).is_valid]
    inside = [shapely.contains_xy(shapely.Polygon(points), COLUMNS, ROWS) for points in polygons]
    centres = shapely.points(COLUMNS, ROWS)
    away = [shapely.distance(shapely.LinearRing(points), centres) for points in polygons]
    area = sum(shapely.Polygon(points).area for points in polygons)
    print(f"{len(polygons)} polygons of {area / len(polygons):.0f} pixels on average")
    for name, (package, drawer) in LIBRARIES.items():
        try:
            drawn = [drawer(points) for points in polygons]
        except ImportError:
            print(f"{name:30} not installed")
            continue
        differs = [mask != truth for mask, truth in zip(drawn, inside, strict=True)]
        pixels = np.mean([each.sum() for each in differs])
        furthest = max(distance[each].max(initial=0) for each, distance in zip(differs, away, strict=True))
        share = 100 * (sum(mask.sum() for mask in drawn) / area - 1)
        what = f"{pixels:6.1f} pixels differ, at most {furthest:.2f} away; area {share:+.1f} %"
        print(f"{name:30} {version(package):10} {what}")


if __name__ == "__main__":
    main()
