"""Generated pictures: land seen from the air, made hard where the paper says segmentation is hard.

What a pixel is cannot be told from its colour, and often not from its surroundings at one scale:

- wheat and vineyard share their colours; only the period of the rows differs;
- orchard and woodland have the same trees; only their arrangement differs;
- a lake and a river are the same water; only the shape of the whole tells them apart;
- a pasture is a meadow with a few sheep somewhere on it;
- a house and a barn have the same roofs; a house stands in a village, a barn in the fields;
- car, boat and tent are the same few bright pixels; what lies around them tells which it is;
- a power line is one or two pixels wide and crosses everything, beside its own shadow.

Shadows of clouds, a colour cast and noise change from picture to picture; pixels under clouds are ignored.
A pixel always covers the same ground, so a larger picture shows more land.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import IGNORE

CLASSES = {
    "meadow": (150, 200, 90),
    "wheat": (235, 205, 90),
    "vineyard": (160, 110, 175),
    "woodland": (30, 105, 50),
    "orchard": (95, 165, 60),
    "village": (205, 190, 175),
    "pasture": (195, 225, 135),
    "lake": (60, 130, 220),
    "river": (95, 205, 235),
    "road": (85, 85, 95),
    "path": (175, 125, 75),
    "house": (205, 65, 55),
    "barn": (120, 35, 60),
    "car": (250, 130, 30),
    "boat": (250, 250, 250),
    "tent": (250, 90, 190),
    "power line": (20, 20, 25),
}
_MEADOW, _WHEAT, _VINEYARD, _WOODLAND, _ORCHARD, _VILLAGE = range(6)
_PASTURE, _LAKE, _RIVER, _ROAD, _PATH, _HOUSE, _BARN, _CAR, _BOAT, _TENT, _POWER_LINE = range(6, len(CLASSES))

# Side of a land parcel, and shares of the six kinds of land, in the order of the classes.
_PARCEL = 44
_SHARES = (0.28, 0.16, 0.16, 0.15, 0.12, 0.13)
_WHEAT_PERIOD, _VINEYARD_PERIOD, _TREE_PERIOD = 3.4, 8.5, 8.0

_Floats = NDArray[np.float32]
_Ids = NDArray[np.int32]


def _rgb(red: float, green: float, blue: float) -> _Floats:
    return np.array((red, green, blue), np.float32).reshape(3, 1, 1)


class Scene:
    """One picture while it is painted, from the ground up: float32 RGB (3, H, W) in [0, 1] and its label (H, W).

    Planes, because NumPy is several times faster along rows of pixels than along triples of colours.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.height, self.width = size
        self.rng = rng
        self.parcels = (self.height * self.width) / _PARCEL**2
        self.y, self.x = np.mgrid[: self.height, : self.width].astype(np.float32)
        # Direction and length of shadows, in pixels per unit of height.
        angle = rng.uniform(0, 2 * np.pi)
        self.sun = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(1.5, 3.0)
        self.image: _Floats = np.empty((3, *size), np.float32)
        self.label: _Ids = np.empty(size, np.int32)

    def noise(self, period: int) -> _Floats:
        """Smooth noise (H, W) of about unit deviation with features of ``period`` pixels."""
        # Whole cells are enlarged, then cut, because resizing is several times faster than warping.
        rows, columns = int(np.ceil(self.height / period)) + 2, int(np.ceil(self.width / period)) + 2
        coarse = self.rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(1.4)
        wide = cv2.resize(coarse, (columns * period, rows * period), interpolation=cv2.INTER_CUBIC)
        return wide[period : period + self.height, period : period + self.width]

    def things(self, rate: float) -> int:
        """A random number of things, ``rate`` of them to be expected on each parcel's area."""
        return int(self.rng.poisson(rate * self.parcels))

    def lines(self, rate: float) -> int:
        """A random number of lines that cross the picture, ``rate`` of them to be expected on each parcel's length."""
        return int(self.rng.poisson(rate * self.parcels**0.5))

    def land(self) -> None:
        """Parcels with crooked borders, each of one kind, with its own colours and its own direction."""
        rng = self.rng
        seeds = np.full((self.height, self.width), 255, np.uint8)
        for top in range(0, self.height, _PARCEL):
            for left in range(0, self.width, _PARCEL):
                row, column = top + rng.integers(_PARCEL), left + rng.integers(_PARCEL)
                seeds[min(row, self.height - 1), min(column, self.width - 1)] = 0
        _, nearest = cv2.distanceTransformWithLabels(
            seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )
        bend_x, bend_y = self.x + 3 * self.noise(24), self.y + 3 * self.noise(24)
        bent = cv2.remap(nearest.astype(np.uint16), bend_x, bend_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        self.parcel: NDArray[np.intp] = bent.astype(np.intp)
        parcel = self.parcel

        parcels = int(parcel.max()) + 1
        kind = rng.choice(len(_SHARES), parcels, p=_SHARES).astype(np.int32)
        self.label = np.take(kind, parcel)

        # Ground: two colours a parcel; crops share one range of colours, grass-like land another.
        mix = rng.random((1, parcels), dtype=np.float32)
        crop = mix * _rgb(0.80, 0.70, 0.38) + (1 - mix) * _rgb(0.52, 0.58, 0.28)
        grass = mix * _rgb(0.48, 0.62, 0.28) + (1 - mix) * _rgb(0.40, 0.55, 0.30)
        pavement = mix * _rgb(0.70, 0.66, 0.60) + (1 - mix) * _rgb(0.62, 0.60, 0.52)
        crops = (kind == _WHEAT) | (kind == _VINEYARD)
        light = np.where(crops, crop, np.where(kind == _VILLAGE, pavement, grass))[:, 0]
        light *= rng.uniform(0.9, 1.1, parcels).astype(np.float32)
        dark = light * _rgb(0.62, 0.72, 0.60)[:, 0]

        # Every kind is drawn in the parcel's own coordinates u, v: along and across its rows, in periods.
        period = np.select(
            [kind == _WHEAT, kind == _VINEYARD], [_WHEAT_PERIOD, _VINEYARD_PERIOD], _TREE_PERIOD
        ) * rng.uniform(0.9, 1.1, parcels)
        angle = rng.uniform(0, np.pi, parcels)
        along = np.stack([np.cos(angle) / period, np.sin(angle) / period, rng.random(parcels)]).astype(np.float32)
        a, b, c = np.take(along, parcel, axis=1)
        sway = 2.5 * self.noise(48)
        u = a * self.x + b * self.y + c + sway * a
        v = a * self.y - b * self.x - c + sway * b

        rows = np.sin(2 * np.pi * u) * 0.5 + 0.5
        # One tree in each square of the grid: in its middle in an orchard, anywhere in a wood.
        cell_u, cell_v = np.floor(u), np.floor(v)
        tree = (cell_u.astype(np.int32) & 63) * 64 + (cell_v.astype(np.int32) & 63)
        shift_u, shift_v, tint = np.take(rng.random((3, 4096), dtype=np.float32) - np.float32(0.5), tree, axis=1)
        wild = (self.label == _WOODLAND) * np.float32(0.62)
        du, dv = u - cell_u - 0.5 - shift_u * wild, v - cell_v - 0.5 - shift_v * wild
        radius = 0.34 + 0.06 * tint
        distance = cv2.magnitude(du, dv) / radius
        crown = np.clip((1.15 - distance) * 4, 0, 1)
        trees = (self.label == _WOODLAND) | (self.label == _ORCHARD)
        crown *= trees

        speckle = rng.standard_normal((self.height, self.width), dtype=np.float32)
        mottle = self.noise(9) * 0.045 + speckle * 0.03
        flat = np.where(kind >= _WOODLAND, np.where(kind == _VILLAGE, 0.9, 0.75), 0.9).astype(np.float32)
        shade = np.where(np.take(crops, parcel), rows, np.take(flat, parcel))
        self.image = np.take(light - dark, parcel, axis=1)
        self.image *= shade
        self.image += np.take(dark, parcel, axis=1)
        # A crown is bright on the side of the sun; its shadow falls on the other side.
        sun_u, sun_v = self._turned(a, b)
        lit = np.clip(0.75 - 0.5 * (du * sun_u + dv * sun_v) / radius + 0.35 * tint, 0.1, 1)
        shadow = cv2.magnitude(du - 0.16 * sun_u, dv - 0.16 * sun_v) / radius
        self.image *= 1 - 0.35 * np.clip((1.1 - shadow) * 4, 0, 1) * trees
        leaves = lit * _rgb(0.25, 0.50, 0.24)
        leaves -= self.image
        leaves *= crown
        self.image += leaves
        self.image *= 1 + mottle

    def _turned(self, a: _Floats, b: _Floats) -> tuple[_Floats, _Floats]:
        """The sun's direction as a unit vector in the rows' coordinates, from the rows' direction (a, b)."""
        length = cv2.magnitude(a, b)
        x, y = (self.sun / np.linalg.norm(self.sun)).astype(np.float32)
        return (a * x + b * y) / length, (a * y - b * x) / length

    def water(self) -> None:
        """Lakes and ponds (round) and sometimes a river (long), of one and the same water."""
        rng = self.rng
        mask = np.zeros((self.height, self.width), np.uint8)
        if rng.random() < min(0.9, 0.16 * self.parcels**0.5):
            cv2.polylines(mask, [self._curve(bend=0.35)], False, 2, int(rng.integers(9, 25)))
        for _ in range(self.things(0.07)):
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            radius = rng.uniform(7, 36) * (1 + 0.16 * np.sin(2 * angle + rng.uniform(0, 6)))
            radius *= 1 + 0.12 * np.sin(3 * angle + rng.uniform(0, 6))
            centre = rng.uniform(0, (self.width, self.height))
            shore = centre + np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
            cv2.fillPoly(mask, [shore.astype(np.int32)], 1)
        if not mask.any():
            return
        wet = mask > 0
        depth = cv2.distanceTransform((wet * np.uint8(255)), cv2.DIST_L2, 3)
        ripples = 0.04 * np.sin(0.9 * self.x + 0.5 * self.y + 2 * self.noise(16)) + 0.05 * self.noise(14)
        water = _rgb(*rng.uniform((0.12, 0.32, 0.42), (0.26, 0.46, 0.60)))
        bank = _rgb(0.72, 0.66, 0.50)
        ramp = np.clip(depth * 0.5 - 0.4, 0, 1)
        surface = water * (1 + ripples)
        surface -= bank
        surface *= ramp
        surface += bank
        np.copyto(self.image, surface, where=wet)
        np.copyto(self.label, np.where(mask == 1, _LAKE, _RIVER), where=wet)

    def _curve(self, bend: float) -> _Ids:
        """A smooth curve across the whole picture: points (24, 2) in pixels."""
        rng = self.rng
        angle = rng.uniform(0, np.pi)
        reach = np.hypot(self.height, self.width) * 0.75
        t = np.linspace(-1, 1, 24)
        swing = np.sin(2.5 * t + rng.uniform(0, 2 * np.pi)) * bend * rng.uniform(0.3, 1) * min(reach, 120)
        centre = rng.uniform((0.15, 0.15), (0.85, 0.85)) * (self.width, self.height)
        x = centre[0] + np.cos(angle) * t * reach - np.sin(angle) * swing
        y = centre[1] + np.sin(angle) * t * reach + np.cos(angle) * swing
        return np.stack([x, y], -1).round().astype(np.int32)

    def _paint(
        self, line: _Ids, width: int, colour: NDArray[np.float64], label: int | None, opacity: float = 1
    ) -> None:
        """Draw a line: smooth in the image, and as whole pixels in the label (not at all where ``label`` is None)."""
        cover = np.zeros((self.height, self.width), np.uint8)
        cv2.polylines(cover, [line], False, 255, width, cv2.LINE_AA)
        left, top, columns, rows = cv2.boundingRect(cover)
        box = np.s_[top : top + rows, left : left + columns]
        alpha = cover[box] * np.float32(opacity / 255)
        ground = self.image[:, box[0], box[1]]
        ground += (_rgb(*colour) - ground) * alpha
        if label is not None:
            self.label[box][cover[box] > 127] = label

    def ways(self) -> None:
        """Paths (two or three pixels wide) and roads (five or six)."""
        rng = self.rng
        for _ in range(self.lines(0.24)):
            earth = rng.uniform((0.66, 0.56, 0.42), (0.78, 0.70, 0.56))
            self._paint(self._curve(bend=0.5), int(rng.integers(2, 4)), earth, _PATH)
        for _ in range(self.lines(0.27)):
            road = self._curve(bend=0.25)
            grey = np.full(3, rng.uniform(0.42, 0.62))
            self._paint(road, int(rng.integers(5, 7)), grey, _ROAD)
            self._paint(road, 1, np.full(3, 0.85), None, opacity=0.35)

    def _rectangle(self, centre: NDArray[np.float64], length: float, width: float, angle: float) -> NDArray[np.float64]:
        """Corners (4, 2) of a turned rectangle; the first two are its left long side."""
        along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
        across = np.array([-np.sin(angle), np.cos(angle)]) * width / 2
        return centre + np.array([-along - across, along - across, along + across, -along + across])

    def _sites(self, kinds: tuple[int, ...], count: int) -> NDArray[np.int64]:
        """Up to ``count`` random pixels (x, y) whose label is one of ``kinds``."""
        where = self.rng.integers(0, (self.width, self.height), (4 * count, 2))
        return where[np.isin(self.label[where[:, 1], where[:, 0]], kinds)][:count]

    def buildings(self) -> None:
        """The same roofs in villages (houses, many) and in the fields (barns, few)."""
        villages = int((self.label == _VILLAGE).sum() / 150)
        sites = [(site, _HOUSE) for site in self._sites((_VILLAGE,), villages)]
        fields = (_MEADOW, _WHEAT, _VINEYARD)
        sites += [(site, _BARN) for site in self._sites(fields, self.things(0.35))]
        street = self.rng.uniform(0, np.pi)
        free = np.ones((self.height, self.width), np.uint8)
        for site, label in sites:
            x, y = site
            if not free[y, x]:
                continue
            cv2.circle(free, (int(x), int(y)), 11, 0, -1)
            rng = self.rng
            angle = street + rng.choice((0, np.pi / 2)) + rng.normal() * 0.1
            length, width = rng.uniform(8, 15), rng.uniform(6, 9)
            corners = self._rectangle(site.astype(np.float64), length, width, angle)
            ridge = (corners[0] + corners[3]) / 2, (corners[1] + corners[2]) / 2
            roof = rng.uniform((0.50, 0.28, 0.22), (0.74, 0.44, 0.36)) if rng.random() < 0.7 else np.full(3, 0.5)
            self._fill(np.concatenate([corners, corners + self.sun * 1.6]), None, opacity=0.5)
            slope = 0.16 * np.sign(self.sun @ (corners[3] - corners[0]))
            self._fill(corners, roof * (1 - slope), label)
            self._fill(np.array([*ridge, corners[2], corners[3]]), roof * (1 + slope), label)

    def _fill(
        self,
        corners: NDArray[np.float64],
        colour: NDArray[np.float64] | None,
        label: int | None = None,
        opacity: float = 1,
    ) -> None:
        """Fill the convex hull of ``corners``; without a colour it is a shadow."""
        hull = cv2.convexHull((corners * 16).round().astype(np.int32))
        left, top, columns, rows = cv2.boundingRect(hull)
        left, top = max(left // 16 - 1, 0), max(top // 16 - 1, 0)
        box = np.s_[top : top + rows // 16 + 4, left : left + columns // 16 + 4]
        ground = self.image[:, box[0], box[1]]
        if not ground.size:
            return
        cover = np.zeros(ground.shape[1:], np.uint8)
        cv2.fillConvexPoly(cover, hull - (left * 16, top * 16), 255, cv2.LINE_AA, shift=4)
        alpha = cover * np.float32(opacity / 255)
        if colour is None:
            ground *= 1 - alpha
        else:
            ground += (_rgb(*colour) - ground) * alpha
        if label is not None:
            self.label[box][cover > 127] = label

    def sheep(self) -> None:
        """Two or more sheep turn what is left of a meadow into a pasture."""
        rng = self.rng
        parcels = int(self.parcel.max()) + 1
        grazed = rng.random(parcels) < 0.5
        sites = self._sites((_MEADOW,), int((self.label == _MEADOW).sum() / 200))
        home = self.parcel[sites[:, 1], sites[:, 0]]
        flock = np.bincount(home[grazed[home]], minlength=parcels)
        wool = np.array((0.93, 0.91, 0.84))
        for site, parcel in zip(sites, home, strict=True):
            if flock[parcel] >= 2:
                body = self._rectangle(site.astype(np.float64), 3, 2, rng.uniform(0, np.pi))
                self._fill(body + self.sun * 0.4, None, opacity=0.4)
                self._fill(body, wool)
        self.label[(self.label == _MEADOW) & np.take(flock >= 2, self.parcel)] = _PASTURE

    def small_things(self) -> None:
        """The same bright spots on roads (cars), on water (boats) and on meadows (tents)."""
        rng = self.rng
        places = [
            ((_ROAD,), _CAR, int((self.label == _ROAD).sum() / 90)),
            ((_LAKE, _RIVER), _BOAT, int(np.isin(self.label, (_LAKE, _RIVER)).sum() / 190)),
            ((_MEADOW,), _TENT, int((self.label == _MEADOW).sum() / 220)),
        ]
        paints = np.array([(0.95, 0.95, 0.93), (0.85, 0.20, 0.16), (0.95, 0.80, 0.20), (0.20, 0.35, 0.75)])
        for kinds, label, most in places:
            for site in self._sites(kinds, int(rng.integers(most + 1))):
                corners = self._rectangle(
                    site.astype(np.float64), rng.uniform(5.5, 8), rng.uniform(3.5, 5), rng.uniform(0, np.pi)
                )
                paint = paints[rng.integers(len(paints))] * rng.uniform(0.85, 1.05)
                self._fill(corners + self.sun * 0.6, None, opacity=0.4)
                self._fill(corners, paint, label)

    def power_line(self) -> None:
        """A straight wire from border to border, over everything, with its shadow beside it."""
        rng = self.rng
        for _ in range(self.lines(0.14)):
            angle = rng.uniform(0, np.pi)
            along = np.array([np.cos(angle), np.sin(angle)])
            centre = rng.uniform((0.2, 0.2), (0.8, 0.8)) * (self.width, self.height)
            ends = centre + np.outer((-1, 1), along) * np.hypot(self.height, self.width)
            wire = ends.round().astype(np.int32)
            self._paint(wire + (self.sun * 3).astype(np.int32), 1, np.zeros(3), None, opacity=0.45)
            metal = np.full(3, rng.uniform(0.75, 0.95))
            self._paint(wire, 2, metal, _POWER_LINE, opacity=0.2)
            for side in (-1.4, 1.4):
                offset = np.array([-along[1], along[0]]) * side
                self._paint((ends + offset).round().astype(np.int32), 1, metal, None, opacity=0.8)
            for step in np.arange(rng.uniform(-1, -0.7), 1, 0.45) * np.hypot(self.height, self.width):
                mast = self._rectangle(centre + along * step, 5, 5, angle + np.pi / 4)
                self._fill(np.concatenate([mast, mast + self.sun * 3]), None, opacity=0.4)
                self._fill(mast, np.full(3, 0.25), _POWER_LINE)

    def weather(self) -> None:
        """Shadows of clouds, sometimes a cloud (ignored), light that changes over the picture, and its colour."""
        rng = self.rng
        height = self.noise(36)
        shade = np.clip((height - 0.7) * 3, 0, 1) * np.float32(rng.uniform(0.25, 0.45))
        self.image *= 1 - shade
        slope = rng.normal(0, 0.12, 2) / (self.width, self.height)
        light = 1 + (self.x - self.width / 2) * np.float32(slope[0]) + (self.y - self.height / 2) * np.float32(slope[1])
        cast = _rgb(*(rng.uniform(0.8, 1.15) * (1 + rng.normal(0, 0.04, 3))))
        self.image *= light
        self.image *= cast
        if rng.random() < 0.4:
            wisp = np.clip(self.noise(30) + 0.25 * self.noise(10) - 1.55, 0, 0.5) * 2
            self.image += (np.float32(0.96) - self.image) * wisp
            self.label[wisp > 0.35] = IGNORE

    def finished(self) -> NDArray[np.uint8]:
        """The picture as RGB uint8 (H, W, 3), with the sensor's noise."""
        grain = self.rng.standard_normal((self.height, self.width), dtype=np.float32)
        self.image += grain * np.float32(self.rng.uniform(0.005, 0.02))
        planes = np.clip(self.image * 255 + 0.5, 0, 255).astype(np.uint8)
        return cv2.merge(list(planes))
