"""The recipe for who names none: one of the package's own, by the data and the machine."""

from pathlib import Path
from statistics import median

from cssformer.data.files import is_picture
from cssformer.data.image_io import read_size
from cssformer.training.recipe import ModelConfig
from cssformer.utils.device import best_device

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


def preset_words(data: Path, model: ModelConfig) -> list[str]:
    """The words that choose a preset, which is told; none for who chooses the network."""
    found = choose_preset(data)
    if found is None:
        return []
    name, reason = found
    if model.backbone != ModelConfig().backbone or model.init is not None:
        print(f"No --config: what is not given is the demonstration's; --config {name} is {reason}.")
        return []
    print(f"No --config: {name} is taken, {reason}; --config demo, light, photos or FILE chooses another.")
    return ["--config", name]
