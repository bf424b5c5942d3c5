"""Both kinds of threads: each is asked to come, errors come through, and calls may overlap."""

import os
import subprocess
import sys
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


FORKED = """
import os, signal, torch
from cssformer import CSSFormer, Predictor
torch.set_num_threads(2)
network = CSSFormer("test_resnet", 3, channels=32, heads=4, points=2)
with torch.inference_mode():
    network(torch.zeros(1, 3, 256, 256))
if (child := os.fork()) == 0:
    signal.alarm(60)
    network(torch.zeros(2, 3, 256, 256)).logits.mean().backward()
    os._exit(torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_network_that_has_run_runs_in_a_forked_process_too() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"], done.stderr


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
