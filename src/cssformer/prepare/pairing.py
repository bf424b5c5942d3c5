"""Which mask belongs to which picture, told from the names of files and folders alone."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cssformer.data.files import files_under, is_picture
from cssformer.utils.errors import UserError

# Words that say what a folder holds; what stands before them (as in `train_labels`, `trainannot`) is kept.
_IMAGE_FOLDER = re.compile(r"(?:^|[_\-. ])(?:images?|imgs?|jpegimages|leftimg8bit|pictures?|photos?|rgb)$", re.I)
_LABEL_FOLDER = re.compile(
    r"(?:^|[_\-. ])(?:gt|gtfine|ground_?truth|segmentations?|segmentationclass)$"
    r"|[_\-. ]?(?:labels?|masks?|annot(?:ation)?s?)$",
    re.I,
)
_LABEL_WORD = re.compile(r"[_\-.](?:labels?|labelids|masks?|annot(?:ation)?s?|gt|segmentations?|seg|l|p)\b", re.I)
# As in image_0001.png with gt_0001.png, or img1.jpg with mask1.png.
_IMAGE_PREFIX = re.compile(r"^(?:images?|imgs?|pictures?|photos?|frames?|rgb)(?:[_\-. ]|(?=\d))", re.I)
_LABEL_PREFIX = re.compile(
    r"^(?:gt|ground_?truth|labels?|masks?|annot(?:ation)?s?|seg(?:mentation)?s?)(?:[_\-. ]|(?=\d))", re.I
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Pair:
    """A picture with its mask (None: no mask), where it stood in the source's folders, and the split these name."""

    image: Path
    label: Path | None
    folders: tuple[str, ...]
    stem: str
    split: str | None

    @property
    def name(self) -> str:
        """The flat name in a prepared folder."""
        return "__".join((*self.folders, self.stem))


@dataclass
class Pairing:
    """What was found: pairs (also pictures without a mask), masks without a picture, the suffixes that matched."""

    pairs: list[Pair]
    lonely_masks: list[Path]
    suffixes: list[tuple[str, str]]


@dataclass(frozen=True)
class _File:
    """A picture or a mask; it pairs by ``name``."""

    path: Path
    name: str
    folders: tuple[str, ...]
    split: str | None
    role: str | None

    @property
    def place(self) -> tuple[tuple[str, ...], str | None]:
        return self.folders, self.split


def find_pairs(
    images: Path,
    labels: Path | None = None,
    image_suffix: str | None = None,
    label_suffix: str | None = None,
    readable: Callable[[Path], bool] = is_picture,
) -> Pairing:
    """Pair the pictures under ``images`` with the masks under ``labels`` (by default under ``images``, too).

    A picture and its mask stand in the same folder, words like ``images`` or ``masks`` aside, and have the same name up
    to a suffix. Suffixes that are not given are those with which most files pair. Files that are not ``readable`` are
    passed over.

    Raises:
        UserError: a folder is missing or holds no pictures, nothing pairs, or several label suffixes fit.
    """
    if labels is None:
        files = list(_files(images, None, readable))
        # Where no folder says that it holds masks, only the names can.
        masks = [file for file in files if file.role == "label"] or files
        pictures = [file for file in files if file.role == "image"] or [file for file in files if file.role is None]
        pictures = files if masks is files else pictures
    else:
        pictures, masks = list(_files(images, "image", readable)), list(_files(labels, "label", readable))
    for found, where in ((pictures, images), (masks, labels or images)):
        if not found:
            raise UserError(f"{where} holds no {'pictures' if found is pictures else 'masks'} that can be read.")
    pairing = _paired(pictures, masks, image_suffix, label_suffix)
    if not pairing.suffixes:
        apart = [file for file in pictures if not _LABEL_PREFIX.match(file.name)]
        marked = [file for file in masks if _LABEL_PREFIX.match(file.name)]
        pairing = _paired(
            [replace(file, name=_IMAGE_PREFIX.sub("", file.name, 1)) for file in apart],
            [replace(file, name=_LABEL_PREFIX.sub("", file.name, 1)) for file in marked],
            image_suffix,
            label_suffix,
        )
    if not pairing.suffixes:
        if labels is None:
            raise UserError(
                f"No picture under {images} has a mask that is named like it; "
                "give the folder of the masks as a second source, or the suffixes of pictures and masks."
            )
        raise UserError(
            f"No file under {images} is named like one under {labels}, such as {masks[0].path}; rename them, or tell "
            "how their names end."
        )
    return pairing


def _paired(pictures: list[_File], masks: list[_File], image_suffix: str | None, label_suffix: str | None) -> Pairing:
    """Pair by names and suffixes; without any pair there are no suffixes either."""
    suffixes = (
        [(image_suffix, label_suffix)]
        if image_suffix is not None and label_suffix is not None
        else _suffixes(pictures, masks, image_suffix, label_suffix)
    )
    image_ends, label_ends = ({pair[side] for pair in suffixes} for side in (0, 1))
    mask_of: dict[Any, Path] = {}
    for file in masks:
        if end := _end(file, label_ends):
            other = mask_of.setdefault((file.place, file.name.removesuffix(end)), file.path)
            if other != file.path:
                raise UserError(f"{other} and {file.path} may both be the mask of one picture; leave one there.")
    pairs, paired = [], False
    for file in pictures:
        end = _end(file, image_ends)
        # Where pictures and masks share a folder, a mask may end like a picture, too (a.png, a_mask.png).
        if pictures is masks and _end(file, image_ends | label_ends) in label_ends:
            continue
        stem = file.path.stem if end is None else file.path.name.removesuffix(end)
        mask = None if end is None else mask_of.pop((file.place, file.name.removesuffix(end)), None)
        paired = paired or mask is not None
        if end is not None or image_suffix is None:
            pairs.append(Pair(file.path, mask, file.folders, stem, file.split))
    return Pairing(pairs, sorted(mask_of.values()), suffixes if paired else [])


def _files(root: Path, role: str | None, readable: Callable[[Path], bool]) -> Iterable[_File]:
    """The readable files under ``root``; where no role is given, their folders may tell it."""
    if not root.is_dir():
        raise UserError(f"{root} is a file; give its folder." if root.exists() else f"There is no folder {root}.")
    for path in filter(readable, files_under(root)):
        folders, split, told = read_folders(path.relative_to(root).parts[:-1], role)
        yield _File(path, path.name, folders, split, told)


def read_folders(parts: Iterable[str], role: str | None = None) -> tuple[tuple[str, ...], str | None, str | None]:
    """What the names of a file's folders say: those that are no mere words, the split, and the role if none is given.

    The role is image or label.
    """
    told, split, folders = role, None, []
    for part in parts:
        label_word, image_word = _LABEL_FOLDER.search(part), _IMAGE_FOLDER.search(part)
        if role is None and (label_word or image_word) and told != "label":
            told = "label" if label_word else "image"
        word = label_word or image_word
        rest = part[: word.start()] if word else part
        # As in train2017.
        if (named := re.sub(r"20\d\d$", "", rest.lower())) in _SPLITS:
            split = _SPLITS[named]
        elif rest:
            folders.append(rest)
    return tuple(folders), split, told


def _end(file: _File, suffixes: set[str]) -> str | None:
    """The longest of ``suffixes`` that the file's name ends in."""
    return max((suffix for suffix in suffixes if file.name.endswith(suffix)), key=len, default=None)


def _suffixes(
    pictures: list[_File], masks: list[_File], image_suffix: str | None, label_suffix: str | None
) -> list[tuple[str, str]]:
    """The pairs of suffixes with which most files pair; several only if they differ in the extension alone."""
    ends = defaultdict(list)
    for file in pictures:
        for stem, end in _cuts(file.name, image_suffix):
            ends[file.place, stem].append((file.path, end))
    votes: Counter[tuple[str, str]] = Counter()
    for file in masks:
        for stem, end in _cuts(file.name, label_suffix):
            for path, image_end in ends.get((file.place, stem), ()):
                apart = path.parent != file.path.parent or file.name != file.path.name
                if path != file.path and (apart or _likeness(end) > _likeness(image_end)):
                    votes[image_end, end] += 1
    if not votes:
        return []
    best = min(votes, key=lambda ends: (-votes[ends], len(ends[0]) + len(ends[1])))
    words = [Path("x" + end).stem for end in best]
    rivals = {
        label_end: count
        for (image_end, label_end), count in votes.items()
        if image_end == best[0] and Path("x" + label_end).stem != words[1] and count * 2 >= votes[best]
    }
    if rivals:
        kinds = ", ".join(sorted((best[1], *rivals)))
        raise UserError(f"The pictures (*{best[0]}) have several kinds of masks: {kinds}; choose one as label suffix.")
    return [ends for ends in votes if [Path("x" + end).stem for end in ends] == words]


def _cuts(name: str, suffix: str | None) -> Iterable[tuple[str, str]]:
    """The ways to cut a name into a stem and a suffix: before any of the last five separators, or as given."""
    if suffix is not None:
        if name.endswith(suffix):
            yield name[: -len(suffix)], suffix
        return
    for match in list(re.finditer(r"(?<=.)[_\-.]", name))[-5:]:
        yield name[: match.start()], name[match.start() :]


def _likeness(end: str) -> tuple[bool, bool, int]:
    """How much a suffix looks like that of a mask, for pictures and masks in one folder."""
    return bool(_LABEL_WORD.search(end)), not end.lower().endswith((".jpg", ".jpeg")), len(end)
