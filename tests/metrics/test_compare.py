"""The paired bootstrap against its definition, scipy's and cases by hand; the command on models and on files."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap

from cssformer import metrics
from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo
from cssformer.metrics.compare import FIRST_RIGHT, SECOND_RIGHT, Comparison, paired_bootstrap, require_comparable
from cssformer.metrics.confusion import intersection_over_union, mean_of_present
from cssformer.metrics.scoring import RESAMPLINGS, Evaluation, Scorer
from cssformer.utils.errors import UserError

INFO = DatasetInfo(("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


def labels(count: int, wrong: float, seed: int) -> tuple[list[NDArray], list[NDArray]]:
    """Pictures of truth, and predictions of which a share, other in each picture, is drawn anew."""
    truths, said = [], []
    for index in range(count):
        rng = np.random.default_rng(index)
        truth = np.kron(rng.integers(0, 3, (4, 5)), np.ones((6, 6), int)).astype(np.int32)
        errs = np.random.default_rng((seed, index))
        where = errs.random(truth.shape) < wrong * 2 * errs.random()
        truths.append(truth)
        said.append(np.where(where, errs.integers(0, 3, truth.shape), truth).astype(np.int32))
    return truths, said


def scored(truths: list[NDArray], said: list[NDArray]) -> Evaluation:
    scorer = Scorer(INFO)
    for index, (truth, each) in enumerate(zip(truths, said, strict=True)):
        scorer.add(f"v{index // 2}_{index}", scorer.count(each, truth))
    return scorer.result()


@pytest.fixture(scope="module")
def pair() -> Comparison:
    truths, first = labels(40, 0.3, 1)
    return Comparison(scored(truths, first), scored(truths, labels(40, 0.22, 2)[1]))


def miou(areas: NDArray) -> float:
    return float(mean_of_present(intersection_over_union(areas)))


def test_is_the_definition(pair: Comparison) -> None:
    """Each resampling is a list of pictures; both scores are taken of the same list."""
    first, second = pair.first.areas, pair.second.areas
    rng = np.random.default_rng(0)
    apart = []
    for _ in range(RESAMPLINGS):
        chosen = np.repeat(np.arange(40), rng.multinomial(40, np.full(40, 1 / 40)))
        assert len(chosen) == 40
        totals = [sum(areas[index] for index in chosen) for areas in (first, second)]
        ious = [[common / (true + said - common) for common, true, said in total.T] for total in totals]
        apart.append([np.mean(ious[1]) - np.mean(ious[0]), *np.subtract(ious[1], ious[0])])
    expected = np.quantile(apart, [0.025, 0.975], axis=0).T
    found = paired_bootstrap(first, second)
    np.testing.assert_allclose([(each.low, each.high) for each in found], expected, atol=1e-12)
    assert found[0].first == pytest.approx(pair.first.scores.miou, abs=1e-12)
    assert [each.second for each in found[1:]] == pytest.approx(pair.second.scores.iou, abs=1e-12)
    assert pair.boundary_iou[0].first == pytest.approx(pair.first.mean_boundary_iou, abs=1e-12)


@pytest.mark.parametrize("kind", ["areas", "boundary"])
def test_agrees_with_scipy(pair: Comparison, kind: str) -> None:
    """Within 4 standard errors of the two quantiles that 1000 and 2000 resamplings have, 0.1 deviations."""
    first, second = getattr(pair.first, kind), getattr(pair.second, kind)

    def apart(left: NDArray, right: NDArray) -> float:
        return miou(second[right].sum(0)) - miou(first[left].sum(0))

    index = np.arange(40)
    theirs = bootstrap(
        (index, index), apart, paired=True, vectorized=False, n_resamples=2000, method="percentile", rng=1
    )
    ours = (pair.iou if kind == "areas" else pair.boundary_iou)[0]
    np.testing.assert_allclose((ours.low, ours.high), theirs.confidence_interval, atol=0.4 * theirs.standard_error)


def test_a_difference_that_every_picture_shows_is_real(pair: Comparison) -> None:
    """Unpaired, the two intervals overlap; but what is hard for one is hard for the other."""
    truths, first = labels(12, 0.5, 1)
    better = [np.where(np.arange(30) < 4, truth, said) for truth, said in zip(truths, first, strict=True)]
    comparison = Comparison(scored(truths, first), scored(truths, better))
    assert comparison.first.interval[1] > comparison.second.interval[0]
    assert all(each.is_real and each.low > 0 for each in comparison.iou)
    assert (
        "B is better by" in comparison.sentences()[0] and "real, the interval excludes 0" in comparison.sentences()[0]
    )
    turned = Comparison(comparison.second, comparison.first)
    assert "A is better by" in turned.sentences()[0]
    assert turned.iou[0].high == pytest.approx(-comparison.iou[0].low, abs=1e-12)


def test_equal_ones_and_chance_are_not_real(pair: Comparison) -> None:
    same = Comparison(pair.first, pair.first)
    assert [(each.low, each.high, each.is_real) for each in same.iou] == [(0, 0, False)] * 4
    truths, first = labels(12, 0.3, 5)
    chance = Comparison(scored(truths, first), scored(truths, labels(12, 0.3, 6)[1]))
    assert not chance.iou[0].is_real and "do not tell which is better" in chance.sentences()[0]


def test_groups_widen_the_interval_of_pictures_that_are_alike() -> None:
    """Each picture four times: by groups the interval is that of the pictures once."""
    truths, first = labels(10, 0.4, 1)
    second = labels(10, 0.4, 2)[1]
    once = Comparison(scored(truths, first), scored(truths, second))
    many = [replace(scored(truths * 4, said * 4), groups=tuple("abcdefghij" * 4)) for said in (first, second)]
    np.testing.assert_allclose(Comparison(*many).iou[0], once.iou[0], atol=1e-12)
    alone = [replace(each, groups=None) for each in many]
    width = Comparison(*alone).iou[0].high - Comparison(*alone).iou[0].low
    assert width < 0.7 * (once.iou[0].high - once.iou[0].low)


def test_a_class_that_neither_has_is_left_out() -> None:
    truth = [np.array([[0, 0, 1, 1]] * 4, np.int32)] * 3
    said = [np.array([[0, 1, 1, 1]] * 4, np.int32)] * 3
    found = Comparison(scored(truth, said), scored(truth, truth))
    assert (
        np.isnan(found.iou[3].low) and not found.iou[3].is_real and found.tables()[0][4][1:] == ("–", "–", "–", "–", "")
    )
    assert found.iou[0].first == pytest.approx((1 / 2 + 2 / 3) / 2) and found.iou[0].second == 1
    assert found.as_dict()["classes"]["c"]["iou"]["difference"] is None


def test_a_class_of_one_picture_has_no_interval() -> None:
    """Every draw that holds the picture gives one difference: an interval without width would be called real."""
    truth = [np.array([[0, 0, 1, 1]] * 4, np.int32), *[np.array([[0, 0, 2, 2]] * 4, np.int32)] * 2]
    said = [np.array([[0, 1, 1, 1]] * 4, np.int32), *[np.array([[0, 2, 2, 2]] * 4, np.int32)] * 2]
    found = Comparison(scored(truth, said), scored(truth, truth))
    assert [each.is_real for each in found.iou] == [True, True, False, True]
    assert found.tables()[0][3] == ("b", "66.67", "100.00", "+33.33", "–", "")
    assert "3 pictures are few: these intervals are too narrow to go by." in found.sentences()


def test_other_pictures_and_other_truth_are_refused(pair: Comparison) -> None:
    truths, said = labels(40, 0.3, 1)
    for other, told in (
        (replace(pair.second, names=tuple("x" * 40)), "different pictures"),
        (scored([truths[0] * 0, *truths[1:]], said), "different labels, v0_0 the first"),
        (replace(pair.second, info=replace(INFO, classes=("a", "b", "d"))), "different classes"),
        (replace(pair.second, dilation_ratio=0.1), "different widths"),
    ):
        with pytest.raises(UserError, match=told):
            Comparison(pair.first, other)
    one = scored(truths[:1], said[:1])
    with pytest.raises(UserError, match="Fewer than two pictures"):
        Comparison(one, one)


def test_pictures_without_labels_are_not_drawn() -> None:
    """The mean counts none of their pixels, so they must not widen or narrow what other pictures might give."""
    truths, said = labels(6, 0.4, 1)
    better = labels(6, 0.2, 2)[1]
    nothing = [np.full_like(truths[0], IGNORE)] * 5
    for count in (1, 6):
        alone, padded = (
            [scored(truths[:count] + more, [*each[:count], *truths[: len(more)]]) for each in (said, better)]
            for more in ([], nothing)
        )
        np.testing.assert_equal(padded[0].interval, alone[0].interval)
        if count == 1:
            assert np.isnan(padded[0].interval).all()
            with pytest.raises(UserError, match="Fewer than two pictures, or groups, have labels"):
                Comparison(*padded)
        else:
            assert Comparison(*padded).iou == Comparison(*alone).iou
            assert Comparison(*padded).boundary_iou == Comparison(*alone).boundary_iou
            assert ("note", "6 pictures: too few to go by the interval") in padded[0].summary()


def files(folder: Path, maps: list[NDArray]) -> str:
    folder.mkdir()
    for index, each in enumerate(maps):
        cv2.imwrite(str(folder / f"{index:02}.png"), each.astype(np.uint8))
    return str(folder)


def test_command_on_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sheet's first picture is the one where the two differ most; its pixels tell who is right."""
    truths, first = labels(10, 0.1, 1)
    second = [each.copy() for each in first]
    second[7][:, :15], first[7][:, 15:] = (truths[7][:, :15] + 1) % 3, (truths[7][:, 15:] + 1) % 3
    first[7][:, :15] = truths[7][:, :15]
    first[7][:, 20:25] = second[7][:, 20:25] = truths[7][:, 20:25]
    second[7][:, 15:] = truths[7][:, 15:]
    second[7][:12, :15] = truths[7][:12, :15]
    words = [files(tmp_path / "a", first), files(tmp_path / "b", second), files(tmp_path / "truth", truths)]
    report = tmp_path / "report"
    assert (
        main(["compare", *words, "--classes", "a", "b", "c", "--output", str(report), "--json", str(tmp_path / "j")])
        == 0
    )
    out = capsys.readouterr().out
    assert "IoU %" in out and "Boundary IoU %" in out and "Pictures were drawn anew, not trainings" in out
    told = json.loads((report / "comparison.json").read_text())
    assert told == json.loads((tmp_path / "j").read_text())
    expected = Comparison(scored(truths, first), scored(truths, second))
    assert told["miou"]["low"] == pytest.approx(expected.iou[0].low) and told["first"] == {"model": words[0]}
    assert expected.most_different(1) == [7]
    tile = cv2.imread(str(report / "differences.png"))[34 : 34 + 240, 12 + 4 * 312 :][:, :300, ::-1]
    assert (tile[180, 75] == FIRST_RIGHT).all() and (tile[180, 270] == SECOND_RIGHT).all()
    assert tile[60, 75].tolist() == [tile[60, 75][0]] * 3


def test_what_cannot_be_compared_is_told_before_all_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truths, first = labels(4, 0.1, 1)
    words = [files(tmp_path / "a", first), files(tmp_path / "b", first), files(tmp_path / "truth", truths)]
    (tmp_path / "b" / "00.png").write_bytes(b"no picture")
    score, sizes = metrics.evaluate_predictions, []
    monkeypatch.setattr(
        metrics, "evaluate_predictions", lambda said, data, **how: sizes.append(len(data)) or score(said, data, **how)
    )
    assert main(["compare", *words, "--classes", "a", "b", "c"]) == 2
    assert "b/00.png" in capsys.readouterr().err and sizes == [1, 1]
    other = scored(truths[:3], first[:3])
    with pytest.raises(UserError, match="different pictures"):
        require_comparable(scored(truths, first), other)
