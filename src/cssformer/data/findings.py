"""Each thing that ``check`` tells of a prepared folder, from the facts of its pictures and labels."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cssformer.data.channels import Channels, Moments
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.duplicates import NEAR, near_duplicates
from cssformer.data.pair_facts import NO_CLASS, PairFacts
from cssformer.data.picture_facts import notes
from cssformer.utils.console import counted
from cssformer.utils.text import listed

# So many classes are named in one sentence.
_SHOWN = 8
# A class of fewer pixels may be at the edge of what is ignored by chance.
_FEW = 100


@dataclass(frozen=True)
class Finding:
    """A sentence of ``check``, and pictures that show what it says.

    Attributes:
        text: the sentence.
        wrong: whether it must be mended; else it is suspicious.
        examples: the pictures.
    """

    text: str
    wrong: bool = False
    examples: tuple[PairFacts, ...] = ()


def of_description(info: DatasetInfo, pictures: Mapping[str, int]) -> Iterator[Finding]:
    """What ``dataset.yaml`` says of the pictures."""
    for split, count in info.counts.items():
        if (there := pictures.get(split, 0)) != count:
            yield Finding(f"dataset.yaml speaks of {count} {split} pictures, but there are {there}.")
    if info.partial:
        yield Finding("The set is partial (dataset.yaml): its scores are not comparable with published ones.")


def of_channels(told: Channels, measured: Moments) -> Iterator[Finding]:
    """Statistics in ``dataset.yaml`` that are not those of the training pictures, and channels that tell nothing."""
    for index, (mean, std) in enumerate(zip(told.mean, told.std, strict=True)):
        apart = max(abs(mean - measured.mean[index]), abs(std - measured.std[index]))
        if apart > 0.01 * measured.std[index]:
            yield Finding(
                f"dataset.yaml tells a mean of {mean:.6g} and a std of {std:.6g} for channel {index}, but its training "
                f"pictures have {measured.mean[index]:.6g} and {measured.std[index]:.6g}; put these there."
            )
        if measured.number[index] == 0:
            yield Finding(f"Channel {index} has no data in any training picture.")
        elif measured.low[index] == measured.high[index]:
            yield Finding(f"Channel {index} is {measured.low[index]:.6g} all over the training pictures.")


def of_sizes(facts: Sequence[PairFacts], info: DatasetInfo) -> Iterator[Finding]:
    """Labels of other sizes than their pictures, and pictures of other sizes than most."""
    differ = [each for each in facts if each.size and each.label_size and each.size != each.label_size]
    turned = [each for each in differ if each.size and each.size[::-1] == each.label_size]
    for found, note in (
        ([each for each in differ if each not in turned], ""),
        (turned, "; one of the two lies turned by 90 degrees"),
    ):
        if found:
            yield Finding(
                f"{len(found)} {'label differs' if len(found) == 1 else 'labels differ'} from the picture in size: "
                f"{found[0].label} is {_size(found[0].label_size)}, its picture {_size(found[0].size)}{note}.",
                True,
                tuple(found),
            )
    sides = np.array([np.sqrt(each.size[0] * each.size[1]) for each in facts if each.size])
    if len(sides):
        usual = float(np.median(sides))
        odd = [each for each in facts if each.size and not 1 / 3 < np.sqrt(each.size[0] * each.size[1]) / usual < 3]
        if odd:
            yield Finding(
                f"{are(len(odd), 'picture')} more than three times as large or as small as most, measured along a "
                f"side: {odd[0].image} is {_size(odd[0].size)}; such objects are learned at another scale.",
                examples=tuple(odd),
            )


def of_ids(facts: Sequence[PairFacts], info: DatasetInfo) -> Iterator[Finding]:
    """Ids outside the classes, and what they look like as a whole."""
    classes, ignore = len(info.classes), info.ignore
    known = f"bit fields 0 to {2**classes - 1}" if info.multilabel else f"classes 0 to {classes - 1}"
    wide = [each for each in facts if each.bits > 8]
    if wide and ignore == 255:
        yield Finding(
            f"{len(wide)} {'label has' if len(wide) == 1 else 'labels have'} 16 bits, but those of a dataset that "
            f"ignores 255 have 8: {wide[0].label} is the first.",
            True,
        )
    found = {value for each in facts for value in each.pixels}
    outside = sorted(value for value in found if value >= classes and value != ignore)
    for value in outside[:10]:
        files = [each for each in facts if value in each.pixels]
        pixels = sum(each.pixels[value] for each in files)
        yield Finding(
            f"The id {value} is outside the {known} (and is not the ignored {ignore}): "
            f"{pixels} pixels in {counted(len(files), 'label')}, {files[0].label} the first.",
            True,
            tuple(files),
        )
    if len(outside) > 10:
        yield Finding(f"{len(outside) - 10} more ids are outside the classes, up to {outside[-1]}.", True)
    if outside == [classes] and 0 not in found:
        yield Finding(
            f"All labels look shifted by one: they have {classes} but never 0. If 1 is the first class, "
            "prepare the data again with a class file of `ID NAME` lines that starts at 1.",
            True,
        )
    elif len(outside) > max(2, len(found) // 2):
        yield Finding(
            f"The labels look like colours read as ids: {len(outside)} of their {len(found)} ids are no classes. "
            "Prepare the data again from the colour masks with a class file of `R G B NAME` lines.",
            True,
        )
    if found == {0, ignore} and classes > 1 and not info.multilabel:
        yield Finding(
            f"The labels hold nothing but 0 and {ignore}, which is ignored: they look like binary masks whose "
            f"foreground is {ignore}. Prepare the data again from the masks.",
            True,
        )


def of_classes(facts: Sequence[PairFacts], info: DatasetInfo) -> Iterator[Finding]:
    """Classes that are absent or the only one, and labels that say nothing."""
    labelled = [each for each in facts if each.pixels]
    splits = list(dict.fromkeys(each.split for each in labelled))
    absent: dict[str, list[str]] = defaultdict(list)
    for index, name in enumerate(info.classes):
        there = {each.split for each in labelled if index in each.pixels}
        where = [split for split in splits if split not in there]
        text = "in no label" if len(where) == len(splits) else f"absent from {' and '.join(where)}"
        if where:
            absent[text].append(f"{index} ({name})")
    for text, names in absent.items():
        yield Finding(f"{_the_classes(names)} {text}.")
    void = [each for each in labelled if set(each.pixels) == {info.ignore}]
    if void:
        told = f"{are(len(void), 'label')} ignored entirely, {void[0].label} the first."
        yield Finding(told, wrong=len(void) == len(labelled), examples=tuple(void))
    nothing = NO_CLASS if info.multilabel else 0
    blank = [each for each in labelled if set(each.pixels) - {info.ignore} == {nothing}]
    totals = {index: sum(each.pixels.get(index, 0) for each in labelled) for index in range(len(info.classes))}
    held = [index for index, total in totals.items() if total]
    if len(held) == 1 and not info.multilabel:
        yield Finding(
            f"All labelled pixels are of one class, {info.classes[held[0]]}: there is nothing "
            "to learn. What is not the object must be a class too, not ignored."
        )
    elif blank:
        background = "background" if info.multilabel else info.classes[0]
        yield Finding(
            f"{are(len(blank), 'label')} blank, nothing but {background}, "
            f"{blank[0].label} the first; make sure that nothing was forgotten there.",
            examples=tuple(blank),
        )
    pixels = sum(each.label_area for each in labelled)
    if pixels and (share := sum(each.pixels.get(info.ignore, 0) for each in labelled) / pixels) > 0.5:
        yield Finding(f"{share:.0%} of all pixels are ignored.")
    outlines = [
        index
        for index in held
        if totals[index] >= _FEW and sum(each.beside_ignored.get(index, 0) for each in labelled) > 0.99 * totals[index]
    ]
    if outlines:
        yield Finding(
            f"{_the_classes([f'{index} ({info.classes[index]})' for index in outlines])} made of pixels that touch "
            "ignored ones: it looks like the outline of objects, which should be ignored as well.",
            examples=tuple(each for each in labelled if outlines[0] in each.pixels),
        )


def of_alignment(facts: Sequence[PairFacts], info: DatasetInfo) -> Iterator[Finding]:
    """Labels that fit their pictures only when turned or mirrored."""
    by_turn: dict[str, list[PairFacts]] = defaultdict(list)
    for each in facts:
        if each.turned:
            by_turn[each.turned].append(each)
    for turn, found in by_turn.items():
        yield Finding(
            f"{len(found)} of {len(facts)} labels {'fits its picture' if len(found) == 1 else 'fit their pictures'} "
            f"better when {turn}, {found[0].label} the first: its outlines lie on the picture's edges only then.",
            examples=tuple(found),
        )


def of_duplicates(facts: Sequence[PairFacts], info: DatasetInfo) -> Iterator[Finding]:
    """Pictures that are in more than one split, as they are or resized, compressed again, made brighter."""
    by_digest: dict[str, list[PairFacts]] = defaultdict(list)
    for each in facts:
        if each.digest:
            by_digest[each.digest].append(each)
    leaks = [same for same in by_digest.values() if len({each.split for each in same}) > 1]
    if leaks:
        first = leaks[0][0]
        other = next(each for each in leaks[0] if each.split != first.split)
        yield Finding(
            f"{are(len(leaks), 'picture')} in more than one split, pixel by pixel: {first.image} equals {other.image}.",
            examples=(first, other),
        )
    hashed = [each for each in facts if each.hash is not None]
    if not hashed:
        return
    pairs = near_duplicates(np.array([each.hash for each in hashed]), np.array([each.split for each in hashed]))
    near = [(hashed[one], hashed[other]) for one, other in pairs if hashed[one].digest != hashed[other].digest]
    if near:
        yield Finding(
            f"{counted(len(near), 'pair')} of pictures of different splits are nearly the same "
            f"(at most {NEAR} of 255 bits of their perceptual hashes differ): {near[0][0].image} and "
            f"{near[0][1].image}.",
            examples=tuple(each for pair in near for each in pair),
        )


def of_files(facts: Sequence[PairFacts], info: DatasetInfo) -> Iterator[Finding]:
    """What is read, but perhaps not as people or other programs expect."""
    files = {each.image: each.file for each in facts if each.file}
    tagged = [path for path, each in files.items() if each.orientation != 1]
    tagged_labels = [each.label for each in facts if each.label_orientation != 1]
    for paths, noun in ((tagged, "picture"), (tagged_labels, "label")):
        if paths:
            yield Finding(
                f"{are(len(paths), noun)} turned upright when read, as the EXIF orientation says, {paths[0]} the "
                "first; pictures and labels must agree upright, and programs that ignore EXIF data see other pixels."
            )
    yield from map(Finding, notes(files))


OF_PAIRS = (of_sizes, of_ids, of_classes, of_alignment, of_duplicates, of_files)
"""Those that tell something of pictures and labels."""


def are(count: int, noun: str) -> str:
    """The number with its noun and verb."""
    return f"{counted(count, noun)} {'is' if count == 1 else 'are'}"


def _the_classes(names: Sequence[str]) -> str:
    one = len(names) == 1
    return f"The class{' ' if one else 'es '}{listed(names[:_SHOWN], len(names))} {'is' if one else 'are'}"


def _size(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))
