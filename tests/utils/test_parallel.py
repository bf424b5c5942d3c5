"""Work done by threads keeps its order and does not pile up."""

import threading
from collections.abc import Iterator

import pytest

from cssformer.utils.parallel import AHEAD_BYTES, ahead, behind


@pytest.mark.parametrize(("size", "most"), [(0, None), (AHEAD_BYTES, 1)])
def test_behind_keeps_the_order_and_lets_few_large_items_wait(size: int, most: int | None) -> None:
    made: list[int] = []
    first = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            # The first item is the last to be done, unless all wait for it.
            if number == 2:
                first.set()
            yield number

    def work(number: int) -> int:
        if number == 0 and most is None:
            assert first.wait(60)
        return -number

    done = []
    for result in behind(work, items(), lambda _: size):
        done.append(result)
        if most is not None:
            assert len(made) - len(done) <= most
    assert done == [-number for number in range(100)]


def test_what_fails_behind_ends_it() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = behind(work, iter(range(1000)), lambda _: 0)
    with pytest.raises(ValueError, match="three"):
        assert list(results)


def test_large_results_that_wait_let_no_others_begin() -> None:
    begun = [threading.Event() for _ in range(20)]

    def work(number: int) -> int:
        begun[number].set()
        return 0 if number < 2 else AHEAD_BYTES

    results = ahead(work, 20, lambda result: result, threads=4)
    assert next(results) == 0
    # By then four at least of the first seven are done.
    assert begun[8].wait(60)
    assert next(results) == 0 and not begun[9].wait(0.2)
    assert list(results) == [AHEAD_BYTES] * 18 and begun[19].is_set()
