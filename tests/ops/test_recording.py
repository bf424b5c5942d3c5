"""What the sampling functions are called with, the weights of attention, and tensors on several devices."""

import itertools
import math
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cssformer.ops import (
    ms_deform_attend,
    ms_deform_attention_weights,
    ms_deform_sample,
    record_sampling,
    use_backend,
)

SHAPES = ((5, 7), (3, 4))
B, N, M, D, L, K = 2, 9, 3, 4, 2, 3


@pytest.fixture
def given() -> dict[str, Tensor]:
    """Positions lie inside and outside the maps."""
    random = torch.Generator().manual_seed(0)
    S = sum(height * width for height, width in SHAPES)
    sizes = {"query": (B, N, M, D), "key": (B, S, M, D), "value": (B, S, M, D), "weights": (B, N, M, L, K)}
    tensors = {name: torch.randn(size, generator=random) for name, size in sizes.items()}
    return {**tensors, "positions": torch.rand((B, N, M, L, K, 2), generator=random) * 10 - 2}


def sample(given: dict[str, Tensor]) -> Tensor:
    return ms_deform_sample(given["value"], SHAPES, given["positions"], given["weights"])


def attend(given: dict[str, Tensor]) -> Tensor:
    return ms_deform_attend(given["query"], given["key"], given["value"], SHAPES, given["positions"])


def at(map_HWD: Tensor, x: float, y: float) -> Tensor:
    """Bilinear, zero outside, from the formula alone."""
    height, width, _ = map_HWD.shape
    total = torch.zeros(map_HWD.shape[-1], dtype=map_HWD.dtype)
    for row, column in itertools.product(range(height), range(width)):
        total += max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row)) * map_HWD[row, column]
    return total


def sampled(map_BSMD: Tensor, positions: Tensor) -> Tensor:
    """(B, N, M, L, K, D), one point at a time."""
    out = torch.empty(*positions.shape[:-1], D)
    levels = map_BSMD.split([height * width for height, width in SHAPES], dim=1)
    for b, n, m, level, k in itertools.product(*map(range, (B, N, M, L, K))):
        map_HWD = levels[level][b, :, m].unflatten(0, SHAPES[level])
        out[b, n, m, level, k] = at(map_HWD, *positions[b, n, m, level, k].tolist())
    return out


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_attention_is_the_sum_of_its_samples_by_these_weights(given: dict[str, Tensor], backend: str) -> None:
    weights = ms_deform_attention_weights(given["query"], given["key"], SHAPES, given["positions"])
    assert weights.shape == (B, N, M, L, K) and (weights > 0).all()
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(B, N, M))
    by_hand = (weights[..., None] * sampled(given["value"], given["positions"])).sum((3, 4))
    with use_backend(backend):
        torch.testing.assert_close(attend(given), by_hand, rtol=1e-4, atol=1e-5)


def test_attention_weights_are_a_softmax_of_scaled_products(given: dict[str, Tensor]) -> None:
    logits = (sampled(given["key"], given["positions"]) * given["query"][:, :, :, None, None]).sum(-1) / math.sqrt(D)
    expected = logits.flatten(3).softmax(-1).view_as(logits)
    found = ms_deform_attention_weights(given["query"], given["key"], SHAPES, given["positions"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_what_is_used_is_recorded_in_order(given: dict[str, Tensor], backend: str) -> None:
    with use_backend(backend), record_sampling() as samplings:
        outputs = [sample(given), attend(given)]
    first, second = samplings
    assert first.shapes == second.shapes == SHAPES
    assert first.positions is given["positions"] and first.weights is given["weights"]
    assert first.query is first.key is second.weights is None
    assert second.positions is given["positions"]
    assert second.query is given["query"] and second.key is given["key"]
    # Recorded or not, the results are the same.
    with use_backend(backend):
        assert torch.equal(sample(given), outputs[0]) and torch.equal(attend(given), outputs[1])
    assert len(samplings) == 2


@pytest.mark.parametrize("tokens", [[0], [3, 8, 3], range(N)])
def test_weights_of_some_tokens_are_those_of_all(given: dict[str, Tensor], tokens: list[int]) -> None:
    with record_sampling() as samplings:
        sample(given)
        attend(given)
    every = (given["weights"], ms_deform_attention_weights(given["query"], given["key"], SHAPES, given["positions"]))
    for sampling, weights in zip(samplings, every, strict=True):
        torch.testing.assert_close(sampling.weights_of(list(tokens)), weights[:, list(tokens)])


def test_weights_of_half_precision_are_computed_in_float32(given: dict[str, Tensor]) -> None:
    half = {name: tensor if name == "positions" else tensor.bfloat16() for name, tensor in given.items()}
    with record_sampling() as samplings:
        sample(half)
        attend(half)
    exact = ms_deform_attention_weights(half["query"].float(), half["key"].float(), SHAPES, half["positions"])
    assert torch.equal(samplings[0].weights_of([1, 2]), half["weights"][:, [1, 2]].float())
    torch.testing.assert_close(samplings[1].weights_of([1, 2]), exact[:, [1, 2]])


def test_recordings_inside_each_other(given: dict[str, Tensor]) -> None:
    """A call belongs to the recording nearest to it."""
    with record_sampling() as outer:
        sample(given)
        with record_sampling() as inner:
            attend(given)
        sample(given)
    assert [sampling.weights is None for sampling in outer] == [False, False]
    assert [sampling.weights is None for sampling in inner] == [True]


def test_an_exception_ends_its_recording_alone(given: dict[str, Tensor]) -> None:
    with record_sampling() as outer:
        with pytest.raises(RuntimeError, match="stop"), record_sampling() as inner:
            sample(given)
            raise RuntimeError("stop")
        attend(given)
    assert len(inner) == len(outer) == 1
    with pytest.raises(RuntimeError, match="stop"), record_sampling() as alone:
        raise RuntimeError("stop")
    sample(given)
    assert alone == [] and len(inner) == len(outer) == 1


def test_threads_record_their_own_calls(given: dict[str, Tensor]) -> None:
    both_inside = threading.Barrier(2, timeout=60)
    found: dict[str, list[bool]] = {}

    def work(name: str, function: Callable[[dict[str, Tensor]], Tensor]) -> None:
        with record_sampling() as samplings:
            both_inside.wait()
            function(given)
            both_inside.wait()
        found[name] = [sampling.weights is None for sampling in samplings]

    threads = [threading.Thread(target=work, args=pair) for pair in (("sample", sample), ("attend", attend))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"sample": [False], "attend": [True]}


def test_a_refused_call_is_not_recorded(given: dict[str, Tensor]) -> None:
    with record_sampling() as samplings, pytest.raises(ValueError, match="weights"):
        sample({**given, "weights": given["weights"][..., :-1]})
    assert samplings == []


def test_gradients_flow_through_what_is_recorded(given: dict[str, Tensor]) -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in given.items()}
    with record_sampling() as samplings:
        attend(leaves)
    samplings[0].weights_of([4])[0, 0, 1, 0, 0].backward()
    for name in ("query", "key", "positions"):
        grad = leaves[name].grad
        assert grad is not None and grad.abs().max() > 0


@pytest.mark.parametrize(
    ("function", "name"),
    [(sample, name) for name in ("value", "positions", "weights")]
    + [(attend, name) for name in ("query", "key", "value", "positions")],
)
def test_tensors_on_several_devices_are_refused(
    given: dict[str, Tensor], function: Callable[[dict[str, Tensor]], Tensor], name: str
) -> None:
    with pytest.raises(ValueError, match="all tensors must be on one device, not on cpu, meta"):
        function({**given, name: given[name].to("meta")})


@pytest.mark.filterwarnings("ignore:Sampling on meta")
def test_all_on_the_meta_device_give_the_shape(given: dict[str, Tensor]) -> None:
    elsewhere = {name: tensor.to("meta") for name, tensor in given.items()}
    for out in (sample(elsewhere), attend(elsewhere)):
        assert out.shape == (B, N, M, D) and out.device.type == "meta"
