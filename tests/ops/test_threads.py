"""Both kinds of threads: each is asked to come, errors come through, and calls may overlap."""

import threading
import time
from collections.abc import Callable

import pytest

from cssformer.ops import threads

KINDS = ["openmp", "python"]


@pytest.fixture(params=KINDS)
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    if request.param == "python":
        monkeypatch.setattr(threads, "_parallel", None)
    elif threads._parallel is None:
        pytest.skip("torch has no GNU OpenMP here")
    return threads.together


@pytest.mark.parametrize("threads", [1, 2])
def test_every_thread_takes_part(together: Callable[..., None], threads: int) -> None:
    all_here = threading.Barrier(threads)
    seen: list[int] = []

    def come() -> None:
        all_here.wait(30)
        seen.append(threading.get_ident())

    together(come, threads)
    assert len(set(seen)) == len(seen) == threads
    assert threading.get_ident() in seen


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_caller_comes_through(together: Callable[..., None], error: type[BaseException]) -> None:
    caller = threading.get_ident()

    def fail() -> None:
        if threading.get_ident() == caller:
            raise error("of this thread")

    with pytest.raises(error, match="of this thread"):
        together(fail, 2)


def test_an_error_of_another_thread_comes_through(together: Callable[..., None]) -> None:
    caller = threading.get_ident()
    begun = threading.Event()

    def fail() -> None:
        if threading.get_ident() == caller:
            assert begun.wait(30)
        else:
            begun.set()
            raise ValueError("of another thread")

    with pytest.raises(ValueError, match="of another thread"):
        together(fail, 2)


def test_work_is_shared_out_once(together: Callable[..., None]) -> None:
    pieces = iter(range(200))
    done: list[int] = []

    def take() -> None:
        for piece in pieces:
            time.sleep(0)
            done.append(piece)

    together(take, 3)
    assert sorted(done) == list(range(200))
