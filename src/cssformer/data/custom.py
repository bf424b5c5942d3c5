"""A user's own augmentation, of the form that albumentations has."""

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from cssformer.data.dataset import IGNORE, Sample
from cssformer.data.dataset_info import DatasetInfo
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Interrupted


@dataclass(frozen=True)
class CustomAugment:
    """Calls ``augment(image=image, mask=mask)``, which gives a dictionary of both, as albumentations' ``Compose`` does.

    The image is that of a :class:`cssformer.data.dataset.Sample`, of a photograph RGB uint8 (H, W, 3), the mask uint8
    (H, W) of class indices, 255 where ignored; of more than 255 classes, or of bit fields where the data are
    multi-label, it is uint16, with 65535. Both keep their size.
    Python's and NumPy's global random numbers, and those of an ``augment`` that has ``set_random_seed``, are the same
    whenever the same sample comes.

    Args:
        path: module and name of the function or object, such as ``mypackage.augment``.
        info: the classes.
    """

    path: str
    augment: Callable[..., dict[str, Any]]
    info: DatasetInfo

    @classmethod
    def load(cls, path: str, info: DatasetInfo) -> "CustomAugment":
        """Import what the path names.

        Raises:
            UserError: there is no such module, its import fails, or it has nothing that can be called by this name.
        """
        module, _, name = path.rpartition(".")
        try:
            found = getattr(import_module(module), name)
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"augment.custom {path} cannot be imported: {_named(error)}; give module and name, such as "
                "mypackage.augment."
            ) from error
        if not callable(found):
            raise UserError(f"augment.custom {path} is no function; it is called with image and mask.")
        return cls(path, found, info)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample after the user's function.

        Raises:
            UserError: it fails, or gives something else than an image and a mask of the same kind and size.
        """
        name, image, label = sample
        assert label is not None
        ignore = self.info.ignore
        mask = np.where(label == IGNORE, ignore, label).astype(np.uint8 if ignore == 255 else np.uint16)
        try:
            with self._seeded(int(rng.integers(2**32))):
                result = self.augment(image=image, mask=mask)
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"augment.custom {self.path} fails in {place.filename}, line {place.lineno}: {_named(error)}."
            ) from error
        try:
            image, mask = (np.asarray(result[key]) for key in ("image", "mask"))
        except (TypeError, LookupError, ValueError) as error:
            raise UserError(f"augment.custom {self.path} must give a dictionary with image and mask.") from error
        given = sample.image
        if (image.shape, image.dtype, mask.shape) != (given.shape, given.dtype, label.shape):
            raise UserError(
                f"augment.custom {self.path} gave an image {image.dtype} {image.shape} and a mask {mask.shape}; they "
                f"must be {given.dtype} {given.shape} and {label.shape}."
            )
        if mask.dtype.kind not in "iufb":
            raise UserError(f"augment.custom {self.path} gave a mask of {mask.dtype}; it must hold numbers.")
        values = 1 << len(self.info.classes) if self.info.multilabel else len(self.info.classes)
        known = (mask == ignore) | ((mask >= 0) & (mask < values) & (mask % 1 == 0))
        if not known.all():
            raise UserError(
                f"augment.custom {self.path} gave a mask with {mask[~known][0]}; the ids are 0 to "
                f"{values - 1}, and {ignore} is ignored."
            )
        label = mask.astype(np.int32)
        label[label == ignore] = IGNORE
        return Sample(name, np.ascontiguousarray(image), label)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Random numbers that depend on the seed; the caller's go on afterwards as if nothing had been."""
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        if hasattr(self.augment, "set_random_seed"):
            self.augment.set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
