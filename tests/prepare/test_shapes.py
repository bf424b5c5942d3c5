"""Which pixels belong to a shape: pycocotools for polygons and run lengths, the definition at centres for others."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from cssformer.prepare.shapes import Bitmap, ClassMap, Ellipse, Line, Polygons, Region, Runs, Shape, draw
from cssformer.utils.errors import UserError

SIZE = (23, 31)
POINTS = st.lists(st.tuples(st.floats(-8, 39), st.floats(-6, 29)), min_size=3, max_size=9)
PIXELS = st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).random(SIZE) < 0.4)


def pixels(region: Region, size: tuple[int, int] = SIZE) -> np.ndarray:
    return draw([Shape("it", region, "here")], {"it": 1}, size, 0, "last") == 1


def centres(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    down, across = np.indices(size) + 0.5
    return across, down


@given(st.lists(POINTS, min_size=1, max_size=3))
def test_polygons_are_those_of_pycocotools(parts):
    flat = [[number for point in part for number in point] for part in parts]
    expected = [coco.decode(coco.frPyObjects([part], *SIZE))[..., 0] for part in flat]
    assert (pixels(Polygons(flat)) == np.any(expected, axis=0)).all()


@given(PIXELS)
def test_run_lengths_are_those_of_pycocotools(mask):
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=not mask.T.ravel()[-1]))
    numbers = np.diff(edges, prepend=0).tolist()
    for counts in (packed["counts"], packed["counts"].decode(), numbers):
        assert (pixels(Runs(packed["size"], counts)) == mask).all()
    assert (pixels(Bitmap(mask)) == mask).all()


def test_polygons_follow_pixel_centres():
    """Half a pixel more or less decides; two polygons that share an edge share no pixel."""
    left = pixels(Polygons([[2, 2, 10, 2, 10, 9, 2, 9]]))
    assert left[2:9, 2:10].all() and left.sum() == 7 * 8
    assert pixels(Polygons([[2.4, 2.4, 10.4, 2.4, 10.4, 9.4, 2.4, 9.4]])).tolist() == left.tolist()
    assert not (left & pixels(Polygons([[10, 2, 20, 2, 20, 9, 10, 9]]))).any()


@given(st.tuples(st.floats(0, 31), st.floats(0, 23)), st.tuples(st.floats(0.5, 20), st.floats(0.5, 20)))
def test_ellipses_by_their_definition(centre, radii):
    across, down = centres()
    expected = ((across - centre[0]) / radii[0]) ** 2 + ((down - centre[1]) / radii[1]) ** 2
    sure = abs(expected - 1) > 1e-9
    assert (pixels(Ellipse(centre, radii)) == (expected <= 1))[sure].all()
    # Turned clockwise by a quarter, as seen on the screen, the radii change places.
    assert (pixels(Ellipse(centre, radii[::-1], 90)) == (expected <= 1))[sure].all()


def test_ellipses_turn_clockwise():
    turned = pixels(Ellipse((15, 11), (9, 2), 45))
    assert turned[11 + 5, 15 + 5] and not turned[11 - 5, 15 + 5]


@given(st.lists(st.tuples(st.floats(0, 31), st.floats(0, 23)), min_size=2, max_size=4), st.floats(0.5, 9))
def test_lines_by_their_definition(points, width):
    from shapely import LineString, distance
    from shapely import points as at

    across, down = centres()
    away = distance(at(across.ravel(), down.ravel()), LineString(points)).reshape(SIZE)
    sure = abs(away - width / 2) > 1e-9
    drawn = pixels(Line([number for point in points for number in point], width))
    assert (drawn == (away <= width / 2))[sure].all()


@given(st.lists(POINTS, min_size=1, max_size=5), st.sampled_from(["smaller", "first", "last"]), st.booleans())
def test_overlap_by_its_definition(polygons, overlap, many):
    regions = [Polygons([[number for point in part for number in point]]) for part in polygons]
    masks = [pixels(region) for region in regions]
    order = range(len(masks))
    if overlap == "smaller":
        order = sorted(order, key=lambda index: -masks[index].sum())
    expected, empty = np.full(SIZE, 999 if many else 99), 999 if many else 99
    for index in reversed(order) if overlap == "first" else order:
        expected[masks[index]] = index
    shapes = [Shape(f"{index}", region, "here") for index, region in enumerate(regions)]
    drawn = draw(shapes, {f"{index}": index for index in range(len(shapes))}, SIZE, empty, overlap)
    assert (drawn == expected).all() and drawn.dtype == (np.uint16 if many else np.uint8)


def test_shapes_without_a_value_are_left_out():
    whole = Polygons([[0, 0, 31, 0, 31, 23, 0, 23]])
    assert (draw([Shape("a", whole, ""), Shape("b", whole, "")], {"a": 1}, SIZE, 0, "last") == 1).all()


@pytest.mark.parametrize(
    ("region", "sentence"),
    [
        (Polygons([]), "it has no polygon"),
        (Polygons([[]]), "its polygon has 0 points instead of three or more"),
        (Polygons([[1, 2, 3, 4]]), "its polygon has 2 points instead of three or more"),
        (Polygons([[1, 2, 3, 4, 5]]), "it has 5 coordinates, an odd number"),
        (Polygons([[1, 2, 3, 4, 5, float("nan")]]), "its coordinates are not finite"),
        (Polygons([[1, 2, 3, 4, 5, "six"]]), "its coordinates are no numbers"),
        (Polygons([[1, 2, 3, 4, 5, 1e9]]), "its point 5, 1e+09 lies far outside the picture of 31x23"),
        (Ellipse((5, 5), (0, 3)), "its radii are 0 and 3"),
        (Line([1, 2], 3), "its line has a single point"),
        (Bitmap(np.ones((5, 5), bool), 28, 0), "its mask of 5x5 pixels at 28, 0 is not within the picture of 31x23"),
        (Runs([31, 23], b"0"), "its mask is 23x31, but the picture is 31x23"),
        (Runs(SIZE, [5, 5]), "its run lengths cover 10 pixels, but the picture has 713"),
        (Runs(SIZE, [5, -5, 713]), "its run lengths are negative"),
        (Runs(SIZE, [2**62, 2**62, 2**62, 2**62, 713]), f"its run lengths cover {2**64 + 713} pixels"),
        (Runs(SIZE, [5.0, 708.0]), "its run lengths are no whole numbers"),
        (Runs(SIZE, "1"), "its run lengths cover 1 pixels"),
        (Runs(SIZE, "PPPP"), "its run lengths are damaged or cut off"),
        (Runs(SIZE, "o" * 40 + "1"), "its run lengths are damaged"),
        (Runs(SIZE, "\x01"), "its run lengths are damaged"),
        (Runs(SIZE, ""), "its run lengths are damaged"),
    ],
)
def test_broken_shapes_are_one_sentence(region, sentence):
    with pytest.raises(UserError, match="^annotation 3 cannot be drawn: ") as error:
        draw([Shape("it", region, "annotation 3")], {"it": 1}, SIZE, 0, "last")
    assert sentence in str(error.value)


@given(st.binary(max_size=30))
def test_damaged_run_lengths_never_reach_the_decoder(packed):
    """pycocotools writes where the numbers lead; ours are read or refused."""
    with contextlib.suppress(UserError):
        assert pixels(Runs(SIZE, packed)).shape == SIZE


@pytest.mark.parametrize("overlap", ["smaller", "first", "last"])
def test_a_map_of_classes_is_drawn_as_its_bitmaps(overlap):
    """Classes of one meaning, classes without a value, colours as numbers of 24 bits."""
    values = np.random.default_rng(0).choice([0, 7, 255, 2**24 - 1], (20, 30))
    names, value_of = {0: "a", 7: "b", 255: "c", 2**24 - 1: "d"}, {"a": 1, "b": 300, "d": 1}
    bitmaps = [Shape(name, Bitmap(values == value), "") for value, name in names.items()]
    drawn = ClassMap(values, names).draw(value_of, 4)
    expected = draw(bitmaps, value_of, (20, 30), 4, overlap)
    assert drawn.dtype == expected.dtype == np.uint16
    np.testing.assert_array_equal(drawn, expected)
