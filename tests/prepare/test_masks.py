"""Masks whose values do not say what they seem to: palettes in disorder, 16-bit binary masks, smoothed masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cssformer.data import IGNORE, SegmentationFolder
from cssformer.prepare.folder import Prepared, prepare_folder
from cssformer.utils.errors import UserError
from tests.data.encoders import tiff

PALETTE = [(0, 0, 0), (128, 64, 0), (0, 200, 30)]


def label(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Three stripes and a corner."""
    ids = np.repeat(np.arange(width) * 3 // width, height).reshape(width, height).T.copy()
    ids[:6, :6] = seed % 3
    return ids


def write(root: Path, masks: list[Image.Image]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index, mask in enumerate(masks):
        mask.save(root / f"masks/{index}.png")
        Image.fromarray(np.full((*mask.size[::-1], 3), index, np.uint8)).save(root / f"images/{index}.png")
    return root


def in_palette(ids: np.ndarray, order: list[int]) -> Image.Image:
    """A palette picture whose palette has the colours in this order, as optimisers and drawing programs leave it."""
    picture = Image.fromarray(np.argsort(order).astype(np.uint8)[ids], "P")
    picture.putpalette([value for index in order for value in PALETTE[index]])
    return picture


ORDERS = [[0, 1, 2], [2, 0, 1], [0, 1, 2], [1, 2, 0]]


@pytest.fixture
def shuffled(tmp_path: Path) -> Path:
    return write(tmp_path / "in", [in_palette(label(seed), order) for seed, order in enumerate(ORDERS)])


def labels_of(prepared: Prepared) -> dict[str, np.ndarray]:
    return {
        sample.name: sample.label for split in ("train", "val") for sample in SegmentationFolder(prepared.output, split)
    }


@pytest.mark.parametrize("text", ["0 0 0 a\n128 64 0 b\n0 200 30 c\n", "0 0 0 0 a\n1 128 64 0 b\n2 0 200 30 c\n"])
def test_palettes_in_disorder_with_the_colours_of_a_class_file(tmp_path: Path, shuffled: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    found = labels_of(prepare_folder([shuffled], tmp_path / "out", class_file=tmp_path / "classes.txt"))
    assert all(np.array_equal(found[str(seed)], label(seed)) for seed in range(4))


def test_palettes_in_disorder_without_names(tmp_path: Path, shuffled: Path) -> None:
    prepared = prepare_folder([shuffled], tmp_path / "out")
    assert any("masks/0.png" in note and "masks/1.png" in note and "by colour" in note for note in prepared.notes)
    colours = np.array(prepared.info.colours)
    for name, found in labels_of(prepared).items():
        assert np.array_equal(colours[found], np.array(PALETTE)[label(int(name))])


def test_palettes_in_disorder_with_ids_are_refused(tmp_path: Path, shuffled: Path) -> None:
    told = r"masks/0\.png and .*masks/1\.png give the id 0 two colours, 0 0 0 and 0 200 30, so ids do not tell"
    with pytest.raises(UserError, match=told):
        prepare_folder([shuffled], tmp_path / "out", classes=["a", "b", "c"])
    (tmp_path / "classes.txt").write_text("0 a\n1 b\n2 c\n")
    with pytest.raises(UserError, match=told):
        prepare_folder([shuffled], tmp_path / "out", class_file=tmp_path / "classes.txt")
    assert not (tmp_path / "out").exists()


def test_palettes_of_many_colours_are_no_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for seed in range(3):
        picture = Image.fromarray(label(seed).astype(np.uint8), "P")
        picture.putpalette(rng.integers(0, 256, 9).tolist())
        pictures.append(picture)
    with pytest.raises(UserError, match="save all with one palette"):
        prepare_folder([write(tmp_path / "in", pictures)], tmp_path / "out")


def test_unused_entries_of_palettes_may_differ(tmp_path: Path) -> None:
    pictures = [in_palette(np.minimum(label(seed), 1), [0, 1, 2]) for seed in range(3)]
    pictures[1].putpalette([0, 0, 0, 128, 64, 0, 9, 9, 9])
    prepared = prepare_folder([write(tmp_path / "in", pictures)], tmp_path / "out", classes=["a", "b"])
    assert np.array_equal(labels_of(prepared)["1"], np.minimum(label(1), 1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [16, 32])
def test_binary_masks_of_16_bits(tmp_path: Path, suffix: str, bits: int) -> None:
    if (suffix, bits) == (".png", 32):
        pytest.skip("a PNG has 16 bits at most")
    root = write(tmp_path / "in", [Image.fromarray((label(seed) == 1).astype(np.uint8)) for seed in range(3)])
    for seed in range(3):
        (root / f"masks/{seed}.png").unlink()
        values = np.where(label(seed) == 1, 65535, 0)
        Image.fromarray(values.astype(np.uint16 if bits == 16 else np.int32)).save(root / f"masks/{seed}{suffix}")
    prepared = prepare_folder([root], tmp_path / "out", classes=["bg", "fg"])
    assert prepared.info.mapping == {"0": 0, "65535": 1} and prepared.info.ignore == 255
    assert all(np.array_equal(found, label(int(name)) == 1) for name, found in labels_of(prepared).items())


def test_foregrounds_of_two_values(tmp_path: Path) -> None:
    pictures = [Image.fromarray(((label(seed) == 1) * (1, 255)[seed % 2]).astype(np.uint8)) for seed in range(4)]
    root = write(tmp_path / "in", pictures)
    with pytest.raises(UserError, match=r"masks/0\.png holds 1 and no 255, .*masks/1\.png holds 255 and no 1"):
        prepare_folder([root], tmp_path / "a", classes=["bg", "fg"])
    prepared = prepare_folder([root], tmp_path / "b", classes=["bg", "fg"], ignore=["255"])
    assert np.array_equal(labels_of(prepared)["1"], np.where(label(1) == 1, IGNORE, 0))


def smoothed(seed: int) -> Image.Image:
    mask = Image.fromarray(np.where(label(seed, 48, 64) == 1, 255, 0).astype(np.uint8))
    return mask.resize((128, 96), Image.Resampling.BILINEAR).resize((64, 48), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("options", [{}, {"classes": ["bg", "fg"]}])
def test_smoothed_masks_are_refused(tmp_path: Path, options: dict) -> None:
    root = write(tmp_path / "in", [smoothed(seed) for seed in range(6)])
    with pytest.raises(UserError, match=r"lie between those of the pixels beside them, in .*masks/.*smoothed or compr"):
        prepare_folder([root], tmp_path / "out", **options)
    values = np.unique(np.concatenate([np.asarray(smoothed(seed)).ravel() for seed in range(6)]))
    others = [str(value) for value in values if value not in (0, 255)]
    prepared = prepare_folder([root], tmp_path / "out", classes=["bg", "fg"], ignore=others)
    assert prepared.info.mapping["255"] == 1


@pytest.mark.parametrize("values", [(0, 255), (0, 40, 80), (0, 127, 255)])
@pytest.mark.parametrize("quality", [75, 90, 95])
def test_ids_that_a_jpeg_has_changed_are_refused(tmp_path: Path, values: tuple[int, ...], quality: int) -> None:
    """Without names, so that it is not their number that tells."""
    pictures = []
    for seed in range(4):
        ids = np.array(values, np.uint8)[label(seed, 48, 64) % len(values)]
        data = cv2.imencode(".jpg", ids, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        pictures.append(Image.fromarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)))
    with pytest.raises(UserError, match="smoothed or compressed"):
        prepare_folder([write(tmp_path / "in", pictures)], tmp_path / "out")


def test_one_smoothed_mask_among_binary_ones(tmp_path: Path) -> None:
    """Its border would be two classes, and 255, the object, ignored everywhere."""
    sharp = [Image.fromarray(np.where(label(seed, 48, 64) == 1, 255, 0).astype(np.uint8)) for seed in range(3)]
    with pytest.raises(UserError, match=r"masks/3\.png for one: the masks were smoothed"):
        prepare_folder([write(tmp_path / "in", [*sharp, smoothed(3)])], tmp_path / "out")


@pytest.mark.parametrize("value", [1, 128])
def test_one_value_beside_255(tmp_path: Path, value: int) -> None:
    pictures = [Image.fromarray(np.where(label(seed) == 1, 255, value).astype(np.uint8)) for seed in range(3)]
    root = write(tmp_path / "in", pictures)
    for names in (None, ["bg", "fg"]):
        with pytest.raises(UserError, match=f"hold {value} and 255 alone: .* add --ignore 255; if it is one"):
            prepare_folder([root], tmp_path / "out", classes=names)
    assert prepare_folder([root], tmp_path / "a", ignore=["255"]).info.mapping == {str(value): 0, "255": None}
    (tmp_path / "classes.txt").write_text(f"{value} bg\n255 fg\n")
    prepared = prepare_folder([root], tmp_path / "b", class_file=tmp_path / "classes.txt")
    assert np.array_equal(labels_of(prepared)["1"], label(1) == 1)


def test_all_unknown_values_are_told_at_once(tmp_path: Path) -> None:
    """With the words that ignore them."""
    root = write(tmp_path / "in", [Image.fromarray(label(s).astype(np.uint8) * (9, 40)[s % 2]) for s in range(4)])
    (tmp_path / "classes.txt").write_text("0 bg\n9 fg\n")
    with pytest.raises(UserError, match=r"3 ids that are no class, 18 in .*/0\.png for one; .* --ignore 18 40 80\."):
        prepare_folder([root], tmp_path / "out", class_file=tmp_path / "classes.txt")
    prepare_folder([root], tmp_path / "out", class_file=tmp_path / "classes.txt", ignore=["18", "40", "80"])
    root = write(tmp_path / "colours", [Image.fromarray(np.array(PALETTE, np.uint8)[label(seed)]) for seed in range(3)])
    (tmp_path / "classes.txt").write_text("0 0 0 bg\n")
    with pytest.raises(UserError, match=r"2 colours .* --ignore 0,200,30 128,64,0\."):
        prepare_folder([root], tmp_path / "ignored", class_file=tmp_path / "classes.txt")
    options = {"class_file": tmp_path / "classes.txt", "ignore": ["0,200,30", "128,64,0"]}
    prepare_folder([root], tmp_path / "ignored", **options)


def on_nothing(ids: np.ndarray, colours: list[tuple[int, int, int]], below: tuple[int, int, int]) -> Image.Image:
    """Ids above 0 in their colours; where the id is 0, transparent pixels of the colour ``below``."""
    pixels = np.array([below, *colours], np.uint8)[ids]
    return Image.fromarray(np.dstack([pixels, np.where(ids > 0, 255, 0).astype(np.uint8)]))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("below", [(0, 0, 0), (255, 255, 255), (128, 64, 0)])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 64, 0)])
def test_objects_on_nothing(tmp_path: Path, suffix: str, below: tuple[int, int, int], colour: tuple) -> None:
    """As drawing programs leave them, the object black, white, or of the colour that is left below transparency."""
    truth = [(label(seed) == 1).astype(int) for seed in range(3)]
    root = write(tmp_path / "in", [Image.fromarray(ids.astype(np.uint8)) for ids in truth])
    for index, ids in enumerate(truth):
        (root / f"masks/{index}.png").unlink()
        options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
        on_nothing(ids, [colour], below).save(root / f"masks/{index}{suffix}", **options)
    with pytest.raises(
        UserError, match=r"masks/0\.\w+ is transparent in places \(3 such masks\); add --transparent bac"
    ):
        prepare_folder([root], tmp_path / "out")
    for name, names in (("a", ["sky", "bird"]), ("b", None)):
        prepared = prepare_folder([root], tmp_path / name, classes=names, transparent="background")
        assert prepared.info.classes[0] == ("sky" if names else "background")
        assert prepared.info.mapping["transparent"] == 0 and any("transparent" in note for note in prepared.notes)
        assert all(np.array_equal(found, truth[int(stem)]) for stem, found in labels_of(prepared).items())
    with pytest.raises(UserError, match="the first name is that of what is transparent"):
        prepare_folder([root], tmp_path / "out", classes=["bird"], transparent="background")
    prepared = prepare_folder([root], tmp_path / "c", classes=["bird"], transparent="ignore")
    assert all(np.array_equal(found == 0, truth[int(stem)]) for stem, found in labels_of(prepared).items())
    assert all(set(np.unique(found)) <= {0, IGNORE} for found in labels_of(prepared).values())


def test_colours_on_nothing_with_a_class_file(tmp_path: Path) -> None:
    """Its class called background, if it has one, is what is transparent; a mask may be transparent throughout."""
    truth = [label(seed) for seed in range(3)] + [np.zeros((24, 32), int)]
    root = write(tmp_path / "in", [on_nothing(ids, PALETTE[1:], PALETTE[1]) for ids in truth])
    for name, text in (("a", "0 200 30 b\n128 64 0 a\n"), ("b", "0 200 30 b\n0 0 0 background\n128 64 0 a\n")):
        (tmp_path / "classes.txt").write_text(text)
        prepared = prepare_folder(
            [root], tmp_path / name, class_file=tmp_path / "classes.txt", transparent="background"
        )
        assert prepared.info.classes == ("background", "b", "a")
        for stem, found in labels_of(prepared).items():
            assert np.array_equal(np.array([0, 2, 1])[truth[int(stem)]], found)


def test_indices_on_nothing(tmp_path: Path) -> None:
    """A TIFF may have a palette and alpha."""
    root = write(tmp_path / "in", [Image.fromarray(label(seed).astype(np.uint8)) for seed in range(3)])
    for seed in range(3):
        (root / f"masks/{seed}.png").unlink()
        pixels = np.stack([label(seed), np.where(label(seed) == 1, 0, 255)], -1)
        (root / f"masks/{seed}.tif").write_bytes(tiff(pixels, 8, 3, palette=PALETTE, extra=2))
    with pytest.raises(UserError, match="is transparent in places"):
        prepare_folder([root], tmp_path / "out")
    prepared = prepare_folder([root], tmp_path / "out", transparent="background")
    assert prepared.info.mapping == {"transparent": 0, "0": 1, "2": 2}
    assert all(
        np.array_equal(np.array([1, 0, 2])[label(int(name))], each) for name, each in labels_of(prepared).items()
    )


def test_masks_that_are_transparent_throughout(tmp_path: Path) -> None:
    root = write(tmp_path / "in", [on_nothing(np.zeros((24, 32), int), [], (0, 0, 0)) for _ in range(3)])
    with pytest.raises(UserError, match="transparent throughout"):
        prepare_folder([root], tmp_path / "out", transparent="background")


def test_a_palette_with_white_before_black_is_told(tmp_path: Path) -> None:
    """The indices stay what they are: of documents 0 is the paper, of bitmaps it may be the object."""
    pictures = [Image.fromarray((label(seed) == 1).astype(np.uint8), "P") for seed in range(3)]
    for picture in pictures:
        picture.putpalette([255, 255, 255, 0, 0, 0])
    prepared = prepare_folder([write(tmp_path / "in", pictures)], tmp_path / "out", classes=["bg", "fg"])
    assert prepared.notes == ("In the palettes 0 is white and 1 is black, so the first class is what looks white.",)
    assert all(np.array_equal(found, label(int(name)) == 1) for name, found in labels_of(prepared).items())


def test_palettes_among_grey_masks_are_told(tmp_path: Path) -> None:
    pictures = [in_palette(label(seed), [0, 1, 2]) for seed in range(2)]
    pictures += [Image.fromarray(label(seed).astype(np.uint8)) for seed in range(2, 4)]
    prepared = prepare_folder([write(tmp_path / "in", pictures)], tmp_path / "out", classes=["a", "b", "c"])
    assert any("2 masks have a palette and 2 are grey" in note for note in prepared.notes)
    assert all(np.array_equal(found, label(int(name))) for name, found in labels_of(prepared).items())


def test_smoothed_colours_are_refused(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.array(PALETTE, np.uint8)[label(seed, 48, 64)]) for seed in range(3)]
    pictures = [each.resize((50, 40), Image.Resampling.BILINEAR) for each in pictures]
    with pytest.raises(UserError, match="smoothed or compressed"):
        prepare_folder([write(tmp_path / "in", pictures)], tmp_path / "out")


def test_colours_and_pixels_of_smoothed_edges_are_told(tmp_path: Path) -> None:
    """Red and green on black: two columns of the border of the one, one of the other, each of 40 pixels."""
    mask = np.zeros((40, 60, 3), np.uint8)
    mask[:, 10:20], mask[:, 40:50] = (255, 0, 0), (0, 255, 0)
    mask[:, 9], mask[:, 20], mask[:, 39] = (128, 0, 0), (128, 0, 0), (0, 99, 0)
    mask[:30, 50] = (0, 64, 0)
    (tmp_path / "classes.txt").write_text("0 0 0 ground\n255 0 0 red\n0 255 0 green\n")
    root = write(tmp_path / "in", [Image.fromarray(mask)] * 3)
    told = (
        "3 colours of the masks, 128,0,0 and 0,99,0 and 0,64,0 first, 450 pixels, are specks or lie between those of "
        f"the pixels beside them, in {root}/masks/0.png for one: the masks were smoothed or compressed. Save them "
        "again without anti-aliasing and compression, or give a class file and --ignore the other values."
    )
    with pytest.raises(UserError) as refused:
        prepare_folder([root], tmp_path / "out", class_file=tmp_path / "classes.txt")
    assert str(refused.value) == told
    others = ["128,0,0", "0,99,0", "0,64,0"]
    prepared = prepare_folder([root], tmp_path / "out", class_file=tmp_path / "classes.txt", ignore=others)
    assert (labels_of(prepared)["0"] == IGNORE).sum() == 150


def test_compressed_masks_saved_as_png_are_refused(tmp_path: Path) -> None:
    pictures = []
    for seed in range(3):
        mask = np.where(label(seed, 48, 64) == 1, 255, 0).astype(np.uint8)
        data = cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
        pictures.append(Image.fromarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)))
    with pytest.raises(UserError, match="smoothed or compressed|smoothed, compressed"):
        prepare_folder([write(tmp_path / "in", pictures)], tmp_path / "out")


def test_ids_with_gaps_are_not_taken_for_smoothed(tmp_path: Path) -> None:
    """Thin classes between others, and every order of neighbours."""
    values = np.array([0, 50, 100, 150, 200])
    rng = np.random.default_rng(0)
    blocks = [np.kron(values[rng.integers(0, 5, (8, 8))], np.ones((4, 4), int)) for _ in range(3)]
    for block in blocks:
        block[:, 3] = 50
    root = write(tmp_path / "in", [Image.fromarray(block.astype(np.uint8)) for block in blocks])
    assert len(prepare_folder([root], tmp_path / "out").info.classes) == 5


def test_what_is_ignored_by_itself_is_named_with_the_values(tmp_path: Path) -> None:
    root = write(tmp_path / "in", [Image.fromarray((label(s) * 127.5).astype(np.uint8)) for s in range(3)])
    with pytest.raises(UserError, match=r"2 values \(0, 127 and 255, which is ignored\)"):
        prepare_folder([root], tmp_path / "out", classes=["a", "b", "c"])


def bordered(seed: int, inside: list[tuple[int, int, int]]) -> Image.Image:
    """The three stripes with VOC's border between them."""
    pixels = np.array(inside, np.uint8)[label(seed)]
    pixels[:, [9, 10, 21, 22]] = (224, 224, 192)
    return Image.fromarray(pixels)


def test_the_border_of_voc_is_ignored_and_told(tmp_path: Path) -> None:
    """As 255 is, whose colour it is in VOC's colour map."""
    root = write(tmp_path / "in", [bordered(seed, PALETTE) for seed in range(3)])
    told = (
        "The colour 224,224,192, VOC's border, is taken as ignored; if it is a class, give it a line in a class file."
    )
    text = "0 0 0 a\n128 64 0 b\n0 200 30 c\n"
    (tmp_path / "classes.txt").write_text(text)
    for name, options in (("a", {"class_file": tmp_path / "classes.txt"}), ("b", {"classes": ["a", "c", "b"]})):
        prepared = prepare_folder([root], tmp_path / name, **options)
        assert prepared.notes == (told,) and prepared.info.mapping["224 224 192"] is None
        # Names are in the order of R, G, B.
        ids = np.array([0, 1, 2] if name == "a" else [0, 2, 1])
        for stem, found in labels_of(prepared).items():
            truth = ids[label(int(stem))]
            truth[:, [9, 10, 21, 22]] = IGNORE
            assert np.array_equal(found, truth)
    with pytest.raises(UserError, match=r"\(128, 64, 0\) and 224,224,192, which is ignored\)"):
        prepare_folder([root], tmp_path / "out", classes=["a", "b", "c", "border"])
    (tmp_path / "classes.txt").write_text(text + "224 224 192 sand\n")
    prepared = prepare_folder([root], tmp_path / "c", class_file=tmp_path / "classes.txt")
    assert prepared.info.classes == ("a", "b", "c", "sand") and not prepared.notes


def test_the_border_of_voc_beside_one_colour_is_asked(tmp_path: Path) -> None:
    root = write(tmp_path / "in", [bordered(seed, [(0, 0, 0)] * 3) for seed in range(3)])
    told = (
        "hold 0,0,0 and 224,224,192 alone: if 224,224,192 is no class, add --ignore 224,224,192; if it is one, .* R G B"
    )
    with pytest.raises(UserError, match=told):
        prepare_folder([root], tmp_path / "out")
