"""The recipe for who names none: one of the package's own, by the data and the machine."""

from dataclasses import fields
from pathlib import Path
from statistics import median

from cssformer.data.files import is_picture
from cssformer.data.image_io import read_size
from cssformer.training.recipe import ModelConfig
from cssformer.utils.device import best_device
from cssformer.utils.options import written
from cssformer.weights.hub import load

SMALL = 192
"""Up to this longer side, in pixels, the demonstration's crops of 128x128 show most of a picture."""
LOOKED_AT = 50


def choose_preset(data: Path) -> tuple[str, str] | None:
    """A preset for a prepared folder, and why; None if it holds no pictures, which training tells.

    Raises:
        UserError: a picture cannot be read.
    """
    folder = data / "train" / "images"
    pictures = sorted(path for path in folder.iterdir() if is_picture(path)) if folder.is_dir() else []
    if not pictures:
        return None
    sizes = [read_size(path) for path in pictures[:: -(-len(pictures) // LOOKED_AT)]]
    width, height = (round(median(sides)) for sides in zip(*sizes, strict=True))
    device = best_device()
    photos = "light" if device == "cpu" else "photos"
    name = "demo" if max(height, width) <= SMALL else photos
    return name, f"for pictures of about {width}x{height} on {device}"


def preset_words(data: Path | None, init: str | None) -> list[str]:
    """The words that choose a preset by the data, which is told, and the network of the one to start from.

    Raises:
        UserError: a picture, or the network to start from, cannot be read.
    """
    words: list[str] = []
    if data is not None and (found := choose_preset(data)) is not None:
        name, reason = found
        network = "" if init is None else f", with the network of {init}"
        others = "--config demo, light, photos, rare_classes, vit or FILE chooses another"
        print(f"No --config: {name} is taken, {reason}{network}; {others}.")
        words += ["--config", name]
    if init is not None:
        saved = load(init)[0]["network"]
        # The first weights come from there too.
        left_out = {"pretrained", "weights", "init", "in_channels", "mean", "std"}
        own = {item.name for item in fields(ModelConfig)} - left_out
        words += [f"--model.{name}={written(value)}" for name, value in saved.items() if name in own]
    return words
