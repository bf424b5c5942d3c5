"""Small pictures are predicted side by side, each by one thread; what is found is the same for any number of these."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cssformer.data import SyntheticScenes
from cssformer.inference import Predictor, predict_files, side_by_side
from cssformer.inference.side_by_side import SMALL, predicted
from cssformer.metrics import evaluate
from cssformer.model import CSSFormer, SegmentationNetwork
from cssformer.utils.errors import UserError


class Keeping(SegmentationNetwork):
    """Keeps on itself what it computes, and has it looked up when a second thread has come as far."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(1))
        self.met = threading.Barrier(2, timeout=60)

    def __deepcopy__(self, memo: dict[int, object]) -> "Keeping":
        copied = Keeping()
        copied.weight, copied.met = self.weight, self.met
        return copied

    def forward(self, images: Tensor) -> Tensor:
        self.kept = images * self.weight
        self.met.wait()
        return self.kept


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_items_have_a_thread_and_a_network_each() -> None:
    model, seen = Keeping(), []

    def look(network: Keeping, number: int) -> Tensor:
        seen.append((torch.get_num_threads(), network is model, network.weight is model.weight))
        return network(torch.tensor(float(number)))

    found = list(predicted(model, look, range(20), lambda _: (1, 512, 512), 0, {}))
    assert found == [(number, torch.tensor(float(number))) for number in range(20)]
    assert seen == [(1, False, True)] * 20
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 1, SMALL + 1), {}),
        ((3, SMALL // 3, 2), {}),
        ((1, 64, 64), {"short_side": 1024}),
        ((1, 512, 512), {"scales": (0.5, 2.0)}),
        (None, {}),
    ],
)
def test_a_large_item_has_all_threads_and_nothing_beside_it(
    shape: tuple[int, int, int] | None, options: dict[str, object]
) -> None:
    """It is done by this thread when all before it are done, and none after it has begun."""
    model, begun, done = Keeping(), set(), set()

    def look(network: Keeping, number: int) -> int:
        begun.add(number)
        if number == 5:
            assert begun == {*range(6)} and done == {*range(5)} and network is model
            assert torch.get_num_threads() == 2 and threading.current_thread() is threading.main_thread()
        done.add(number)
        return number

    found = predicted(model, look, range(9), lambda number: shape if number == 5 else (1, 9, 9), 0, options)
    assert list(found) == [(number, number) for number in range(9)]


def test_no_more_threads_than_the_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "total_memory", lambda _: 3 * side_by_side.THREAD_BYTES)
    found = predicted(Keeping(), lambda *_: threading.get_ident(), range(50), lambda _: (1, 9, 9), 0, {})
    threads = {thread for _, thread in found}
    assert len(threads) == 1 and threads != {threading.get_ident()}


def test_a_stop_begins_no_other_item() -> None:
    begun: list[int] = []
    others = set(threading.enumerate())
    # Processes that share out tests ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def look(_: Keeping, number: int) -> None:
        begun.append(number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            list(predicted(Keeping(), look, range(10**6), lambda _: (1, 9, 9), 0, {}))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) < 10**6 and torch.get_num_threads() == 2
    # One whose start was interrupted is listed for ever.
    assert not {each for each in threading.enumerate() if each.is_alive()} - others


def test_files_and_scores_are_the_same_for_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a damaged picture and a large one among small ones."""
    monkeypatch.setattr(side_by_side, "SMALL", 2 * 40 * 56)
    torch.manual_seed(0)
    CSSFormer("test_resnet", num_classes=17, channels=32, aux=False).save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    scenes = SyntheticScenes(9, (40, 56))
    for index in range(9):
        image = Image.fromarray(scenes[index].image)
        (image.resize((112, 80)) if index == 3 else image).save(tmp_path / f"in/{index}.png")
    (tmp_path / "in/5.png").write_bytes(b"no picture")
    torch.set_num_threads(1)
    predictor, outputs, scores = Predictor.from_pretrained(tmp_path / "model", "cpu"), [], []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = tmp_path / str(threads)
        report = predict_files(str(tmp_path / "model"), [tmp_path / "in"], out, confidence=True, device="cpu")
        assert list(report["failed"]) == [str(tmp_path / "in/5.png")]
        assert [Path(row["input"]).stem for row in report["files"]] == list("01234678")
        small = [path for path in out.rglob("*.png") if path.name != "3.png"]
        outputs.append({path.relative_to(out): path.read_bytes() for path in small})
        scores.append(evaluate(predictor, scenes, batch_size=2).areas.tolist())
        assert np.asarray(Image.open(out / "labels/3.png")).shape == (80, 112)
    assert len(outputs[0]) == 2 * 7 + 1
    assert outputs[0] == outputs[1] and scores[0] == scores[1]


def test_a_picture_that_is_the_only_one_has_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CSSFormer("test_resnet", num_classes=3, channels=16, heads=2, aux=False).save_pretrained(tmp_path / "model")
    scenes, threads, look = SyntheticScenes(2, (40, 56)), [], Predictor.__call__

    def counted(self: Predictor, *given: object) -> object:
        threads.append(torch.get_num_threads())
        return look(self, *given)

    monkeypatch.setattr(Predictor, "__call__", counted)
    (tmp_path / "in").mkdir()
    for index in range(2):
        Image.fromarray(scenes[index].image).save(tmp_path / f"in/{index}.png")
    for inputs in ([tmp_path / "in/0.png"], [tmp_path / "in"]):
        predict_files(str(tmp_path / "model"), inputs, tmp_path / "out", device="cpu", skip_existing=True)
    assert threads == [2, 1]


def test_a_network_that_refuses_a_picture_ends_an_evaluation_in_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CSSFormer("test_resnet", num_classes=17, channels=32, aux=False)

    def refuse(self: CSSFormer, images: Tensor) -> Tensor:
        raise UserError("The backbone takes no such picture.")

    monkeypatch.setattr(CSSFormer, "forward_logits", refuse)
    with pytest.raises(UserError, match=r"takes no such picture"):
        evaluate(model, SyntheticScenes(9, (40, 56)))
    assert torch.get_num_threads() == 2
