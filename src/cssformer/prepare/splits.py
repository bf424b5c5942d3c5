"""Which pictures become training and which validation."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import TypeVar

import numpy as np

from cssformer.utils.errors import UserError

Item = TypeVar("Item", bound=Hashable)


def draw_validation(
    items: Sequence[tuple[Hashable, Item]], share: float, seed: int, classes: Mapping[Item, Set[int]] | None = None
) -> tuple[set[Item], str]:
    """Draw about ``share`` of the items, each given with its folder, in whole folders where there are several.

    Of the ``classes`` of items none leaves training, and each comes to validation where the share allows it, the rarest
    first, as in iterative stratification (Sechidis et al. 2011).

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
    held = {key: {each for item in groups[key] for each in (classes or {}).get(item, ())} for key in keys}
    training = Counter(each for key in keys for each in held[key])
    rarest_first = sorted(training, key=lambda each: (training[each], each))
    drawn: set[Item] = set()
    there: set[int] = set()
    rare: int | None
    for rare in (*rarest_first, None):
        for key in keys[:-1] if rare is None else keys:
            if rare in there:
                break
            # A folder is taken if that brings the number nearer to what is wanted.
            nearer = abs(len(drawn) + len(groups[key]) - wanted) < abs(len(drawn) - wanted)
            only = any(training[each] == 1 for each in held[key]) or len(drawn) + len(groups[key]) == len(items)
            if nearer and not only and drawn.isdisjoint(groups[key]) and (rare is None or rare in held[key]):
                drawn.update(groups[key])
                there |= held[key]
                training.subtract(held[key])
    least = min(keys, key=lambda key: (len(groups[key]), sum(training[each] == 1 for each in held[key])))
    return drawn or set(groups[least]), f"{share:.0%} drawn for validation, {how}"
