"""Which pictures become training and which validation."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from cssformer.utils.errors import UserError

Item = TypeVar("Item", bound=Hashable)


def draw_validation(items: Sequence[tuple[Hashable, Item]], share: float, seed: int) -> tuple[set[Item], str]:
    """Draw about ``share`` of the items, each given with its folder, in whole folders where there are several.

    Returns:
        What was drawn, and a word on how.

    Raises:
        UserError: there are fewer than two items.
    """
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for folder, item in items:
        groups[folder].append(item)
    how = "in whole folders"
    if len(groups) == 1:
        groups = {item: [item] for item in next(iter(groups.values()))}
        how = "picture by picture (there is only one folder)"
    if len(groups) < 2:
        raise UserError(
            "Fewer than two pictures have a mask and are not of the test split; training and validation need one each."
        )
    keys = [list(groups)[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    wanted = share * sum(map(len, groups.values()))
    drawn: set[Item] = set()
    for key in keys[:-1]:
        # A folder is taken if that brings the number nearer to what is wanted.
        if abs(len(drawn) + len(groups[key]) - wanted) < abs(len(drawn) - wanted):
            drawn.update(groups[key])
    return drawn or set(groups[min(keys, key=lambda key: len(groups[key]))]), how
