"""The sampling functions against a loop over every point, and every backend against the definition."""

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cssformer.ops import ms_deform, ms_deform_attend, ms_deform_sample, reference, threads, use_backend

Shapes = tuple[tuple[int, int], ...]
THREE: Shapes = ((5, 7), (3, 3), (1, 1))


def make(
    shapes: Shapes, B: int = 2, N: int = 11, M: int = 2, D: int = 8, K: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs; positions lie on both sides of every edge."""
    random = torch.Generator().manual_seed(seed)
    S, L = sum(h * w for h, w in shapes), len(shapes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)
    return {
        "query": normal(B, N, M, D),
        "key": normal(B, S, M, D),
        "value": normal(B, S, M, D),
        "positions": torch.rand((B, N, M, L, K, 2), generator=random) * (size[:, None] + 3) - 2,
        "weights": normal(B, N, M, L, K),
    }


def run(name: str, inputs: dict[str, Tensor], shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The result of ``name`` and the gradients of a fixed mixture of it, by input."""
    used = ("value", "positions", "weights") if name == "sum" else ("query", "key", "value", "positions")
    leaves = {key: inputs[key].detach().clone().requires_grad_() for key in used}
    if name == "sum":
        out = ms_deform_sample(leaves["value"], shapes, leaves["positions"], leaves["weights"])
    else:
        out = ms_deform_attend(leaves["query"], leaves["key"], leaves["value"], shapes, leaves["positions"])
    mixture = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).cos().view_as(out).to(out)
    grads = torch.autograd.grad(out, list(leaves.values()), mixture)
    return out.detach(), dict(zip(used, grads, strict=True))


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.double() for key, tensor in inputs.items()}


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected magnitude, inputs being of order one."""
    if actual.numel() == 0:
        return 0.0
    return ((actual.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(0.05)).item()


def loops(name: str, inputs: dict[str, Tensor], shapes: Shapes) -> np.ndarray:
    """Written from the formulas alone, one pixel at a time."""
    t = {key: tensor.double().numpy() for key, tensor in inputs.items()}
    B, N, M, L, K, _ = t["positions"].shape
    D = t["value"].shape[-1]
    starts = [0, *itertools.accumulate(h * w for h, w in shapes)]

    def sample(source: np.ndarray, b: int, m: int, level: int, x: float, y: float) -> np.ndarray:
        height, width = shapes[level]
        total = np.zeros(D)
        if math.isfinite(x) and math.isfinite(y):
            for row, column in itertools.product(range(height), range(width)):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                total += share * source[b, starts[level] + row * width + column, m]
        return total

    out = np.zeros((B, N, M, D))
    for b, n, m in itertools.product(range(B), range(N), range(M)):
        points = [(level, *t["positions"][b, n, m, level, k]) for level in range(L) for k in range(K)]
        values = np.array([sample(t["value"], b, m, *point) for point in points])
        if name == "sum":
            weights = t["weights"][b, n, m].ravel()
        else:
            keys = np.array([sample(t["key"], b, m, *point) for point in points])
            weights = np.exp(keys @ t["query"][b, n, m] / math.sqrt(D))
            weights /= weights.sum()
        out[b, n, m] = weights @ values
    return out


AWKWARD = [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 3e9, -1.0, -0.5, 0.0, 2.0, 6.0, 6.5, 7.0, 5.0]


def awkward() -> dict[str, Tensor]:
    """Every pair of special coordinates once: not finite, huge, on both edges, at exact integers."""
    pairs = torch.tensor(list(itertools.product(AWKWARD, AWKWARD)))
    inputs = make(THREE, B=1, N=len(pairs), M=1, K=1)
    inputs["positions"][0, :, 0, :, 0] = pairs[:, None]
    return inputs


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("name", ["sum", "attend"])
@pytest.mark.parametrize("inputs", [make(THREE), awkward()], ids=["random", "awkward"])
def test_against_loops(backend: str, name: str, inputs: dict[str, Tensor]) -> None:
    with use_backend(backend):
        out, grads = run(name, inputs, THREE)
    np.testing.assert_allclose(out, loops(name, inputs, THREE), rtol=1e-4, atol=1e-5)
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("name", ["sum", "attend"])
def test_gradcheck_of_the_definition(name: str) -> None:
    inputs = double(make(((3, 4), (1, 2)), B=1, N=3, M=2, D=2, K=2))
    used = ("value", "positions", "weights") if name == "sum" else ("query", "key", "value", "positions")
    # Bilinear sampling has kinks at integers: keep clear of them.
    positions = inputs["positions"]
    inputs["positions"] = positions.floor() + 0.1 + 0.8 * (positions - positions.floor())
    leaves = [inputs[key].requires_grad_() for key in used]

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(used, tensors, strict=True))
        if name == "sum":
            return ms_deform_sample(named["value"], ((3, 4), (1, 2)), named["positions"], named["weights"])
        return ms_deform_attend(named["query"], named["key"], named["value"], ((3, 4), (1, 2)), named["positions"])

    assert torch.autograd.gradcheck(function, leaves)


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(["sum", "attend"]),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(tuple),
    B=st.integers(1, 3),
    N=st.integers(0, 70),
    M=st.integers(1, 3),
    D=st.sampled_from([1, 8, 24]),
    K=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 1000),
)
def test_cpu_agrees_with_the_definition(
    name: str, shapes: Shapes, B: int, N: int, M: int, D: int, K: int, seed: int
) -> None:
    inputs = make(shapes, B, N, M, D, K, seed)
    out, grads = run(name, inputs, shapes)
    expected, expected_grads = run(name, double(inputs), shapes)
    assert out.shape == expected.shape == (B, N, M, D)
    assert error(out, expected) < 1e-5
    for key, grad in grads.items():
        assert error(grad, expected_grads[key]) < 1e-5, key


@pytest.mark.parametrize("name", ["sum", "attend"])
@pytest.mark.parametrize("spread", [3.0, 1e3])
def test_cpu_agrees_at_the_size_of_a_small_picture(name: str, spread: float) -> None:
    shapes = ((16, 24), (8, 12), (4, 6), (2, 3))
    inputs = make(shapes, B=1, N=510, M=8, D=8, K=4)
    inputs["positions"] = inputs["positions"] * spread
    out, grads = run(name, inputs, shapes)
    expected, expected_grads = run(name, double(inputs), shapes)
    assert error(out, expected) < 1e-5
    for key, grad in grads.items():
        assert error(grad, expected_grads[key]) < 1e-5, key


@pytest.mark.parametrize("name", ["sum", "attend"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    inputs = {key: tensor if key == "positions" else tensor.to(dtype) for key, tensor in make(THREE).items()}
    out, grads = run(name, inputs, THREE)
    expected, expected_grads = run(name, double(inputs), THREE)
    assert out.dtype == dtype
    # Half a unit in the last place of the largest value, and a little for float32.
    bound = 0.51 * torch.finfo(dtype).eps
    assert error(out, expected) < bound
    for key, grad in grads.items():
        assert grad.dtype == inputs[key].dtype
        # The mixture that drives backward is rounded to the values' dtype as well.
        assert error(grad, expected_grads[key]) < 4 * torch.finfo(dtype).eps, key


@pytest.mark.parametrize("name", ["sum", "attend"])
@pytest.mark.parametrize("D", [1, 2, 3, 4, 6, 7, 16, 24, 32, 64])
def test_bfloat16_rows_of_every_width(name: str, D: int) -> None:
    inputs = {
        key: tensor if key == "positions" else tensor.bfloat16() for key, tensor in make(THREE, B=1, D=D, M=3).items()
    }
    out, _ = run(name, inputs, THREE)
    assert error(out, run(name, double(inputs), THREE)[0]) < 0.51 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", ["sum", "attend"])
@pytest.mark.parametrize("K", [16, 21])
def test_as_many_points_as_lanes_and_more(name: str, K: int) -> None:
    inputs = make(THREE, B=1, D=20, K=K)
    assert error(run(name, inputs, THREE)[0], run(name, double(inputs), THREE)[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_in_values_and_queries_is_seen(dtype: torch.dtype) -> None:
    inputs = {key: tensor if key == "positions" else tensor.to(dtype) for key, tensor in make(THREE).items()}
    inputs["positions"].zero_()
    for key, name in (("value", "sum"), ("value", "attend"), ("query", "attend")):
        assert run(name, {**inputs, key: torch.full_like(inputs[key], torch.nan)}, THREE)[0].isnan().all()


@pytest.mark.parametrize("name", ["sum", "attend"])
def test_positions_on_integers_take_the_slope_to_the_right(name: str) -> None:
    inputs = make(THREE)
    inputs["positions"] = inputs["positions"].round()
    _, grads = run(name, inputs, THREE)
    step = 0.25  # within the cell to the right and below a bilinear map is linear along each axis
    if name == "sum":
        for axis in (0, 1):
            shifted = {**inputs, "positions": inputs["positions"].clone()}
            shifted["positions"][..., axis] += step
            _, expected = run(name, double(shifted), THREE)
            assert error(grads["positions"][..., axis], expected["positions"][..., axis]) < 1e-5
    else:
        with use_backend("reference"):
            out, _ = run(name, double(inputs), THREE)
        assert error(run(name, inputs, THREE)[0], out) < 1e-5
        assert grads["positions"].isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_position_that_is_not_finite_samples_zero_and_has_no_gradient(backend: str) -> None:
    inputs = make(THREE, B=1, N=4)
    for n, bad in enumerate([float("nan"), float("inf"), float("-inf"), 1e30]):
        inputs["positions"][:, n, ..., 0] = bad
    with use_backend(backend):
        out, grads = run("sum", inputs, THREE)
        attended, attended_grads = run("attend", inputs, THREE)
    assert out.count_nonzero() == 0 and attended.count_nonzero() == 0
    assert all(grad.count_nonzero() == 0 for grad in (*grads.values(), *attended_grads.values()))


@pytest.mark.parametrize("name", ["sum", "attend"])
def test_same_bits_for_any_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_WORTH_A_THREAD", 1)
    inputs = make(((8, 8), (4, 4)), B=1, N=300, M=3, K=4)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            out, grads = run(name, inputs, ((8, 8), (4, 4)))
            results.append((out, *grads.values()))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(result, results[0], strict=True))


@pytest.mark.parametrize("name", ["sum", "attend"])
def test_callers_in_many_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_WORTH_A_THREAD", 1)
    inputs = make(THREE, N=200)
    expected, _ = run(name, inputs, THREE)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(run(name, inputs, THREE)[0], expected):
                wrong.append(index)

    callers = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers) and not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_process_forked_after_use_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from cssformer.ops import numba

    monkeypatch.setattr(threads, "_WORTH_A_THREAD", 1)
    inputs = {key: tensor.detach() for key, tensor in make(THREE, N=200).items()}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = ms_deform_sample(inputs["value"], THREE, inputs["positions"], inputs["weights"])
        child = os.fork()
        if child == 0:
            # Waiting for a thread that is not there would take for ever.
            signal.alarm(60)
            out = numba.sum_forward(inputs["value"], THREE, inputs["positions"], inputs["weights"])
            os._exit(0 if torch.equal(out, expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_nothing_is_sampled_from_no_scales() -> None:
    out = ms_deform_sample(torch.ones(1, 0, 2, 8), (), torch.zeros(1, 5, 2, 0, 3, 2), torch.ones(1, 5, 2, 0, 3))
    assert torch.equal(out, torch.zeros(1, 5, 2, 8))


@pytest.mark.parametrize("name", ["sum", "attend"])
def test_only_the_gradients_asked_for(name: str) -> None:
    inputs = make(THREE, N=4)
    _, expected = run(name, inputs, THREE)
    for wanted in expected:
        tensors = {key: tensor.clone().requires_grad_(key == wanted) for key, tensor in inputs.items()}
        if name == "sum":
            out = ms_deform_sample(tensors["value"], THREE, tensors["positions"], tensors["weights"])
        else:
            out = ms_deform_attend(tensors["query"], tensors["key"], tensors["value"], THREE, tensors["positions"])
        mixture = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).cos().view_as(out).to(out)
        out.backward(mixture)
        assert {key for key, tensor in tensors.items() if tensor.grad is not None} == {wanted}
        assert torch.equal(tensors[wanted].grad, expected[wanted])


def test_non_contiguous_inputs() -> None:
    inputs = make(THREE)
    expected = run("sum", inputs, THREE)
    turned = {key: tensor.transpose(0, 1).contiguous().transpose(0, 1) for key, tensor in inputs.items()}
    assert not turned["value"].is_contiguous()
    out, grads = run("sum", turned, THREE)
    assert torch.equal(out, expected[0]) and all(torch.equal(grads[key], expected[1][key]) for key in grads)


# ---------------------------------------------------------------- PyTorch around it


def both(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_sample(value, THREE, positions, weights) + 2 * ms_deform_attend(
        query, key, value, THREE, positions
    )


def test_operators_keep_torchs_rules() -> None:
    inputs = {key: tensor.requires_grad_() for key, tensor in make(THREE).items()}
    sizes = [size for shape in THREE for size in shape]
    q, k, v, p, w = inputs.values()
    torch.library.opcheck(torch.ops.cssformer.ms_deform_sample.default, (v, sizes, p, w))
    torch.library.opcheck(torch.ops.cssformer.ms_deform_attend.default, (q, k, v, sizes, p))


def test_compiles_to_one_node() -> None:
    inputs = [tensor.requires_grad_() for tensor in make(THREE).values()]
    targets: list[str] = []

    def look(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module

    torch.compile(both, fullgraph=True, backend=look)(*inputs)
    assert [sum(name in target for target in targets) for name in ("ms_deform_sample", "ms_deform_attend")] == [1, 1]

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(both(*inputs).square().sum(), inputs)
    actual = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    assert all(torch.equal(left, right) for left, right in zip(actual, expected, strict=True))


def test_autocast_and_checkpointing() -> None:
    inputs = make(THREE)
    q, k, v, w = (inputs[key].bfloat16().requires_grad_() for key in ("query", "key", "value", "weights"))
    p = inputs["positions"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        plain = both(q, k, v, p, w)
        checkpointed = torch.utils.checkpoint.checkpoint(both, q, k, v, p, w, use_reentrant=False)
    assert plain.dtype == torch.bfloat16
    leaves = (q, k, v, p, w)
    expected = torch.autograd.grad(plain.float().square().sum(), leaves)
    actual = torch.autograd.grad(checkpointed.float().square().sum(), leaves)
    assert all(torch.equal(left, right) for left, right in zip(actual, expected, strict=True))


def test_export_takes_the_definition() -> None:
    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return both(*inputs)

    inputs = tuple(make(THREE).values())
    program = torch.export.export(Module(), inputs)
    assert not any("cssformer" in str(node.target) for node in program.graph.nodes)
    assert error(program.module()(*inputs), both(*inputs)) < 1e-5


# ---------------------------------------------------------------- choice of backend, misuse


def test_use_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(THREE)
    calls = []
    definition = reference.ms_deform_sample
    monkeypatch.setattr(reference, "ms_deform_sample", lambda *arguments: calls.append(1) or definition(*arguments))
    arguments = (inputs["value"], THREE, inputs["positions"], inputs["weights"])
    ms_deform_sample(*arguments)
    assert not calls
    with use_backend("reference"):
        ms_deform_sample(*arguments)
    assert calls
    with pytest.raises(ValueError, match="not one of"), use_backend("fast"):
        pass


def test_backend_by_environment() -> None:
    code = "import cssformer.ops.ms_deform as o; print(o._choice)"
    environment = {**os.environ, "CSSFORMER_SAMPLING": "reference"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reference"


def test_a_missing_backend_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("numba needs another numpy")

    ms_deform._module.cache_clear()
    try:
        monkeypatch.setattr(ms_deform.importlib, "import_module", missing)
        inputs = make(THREE)
        arguments = (inputs["value"], THREE, inputs["positions"], inputs["weights"])
        with pytest.warns(UserWarning, match="numba needs another numpy"):
            out = ms_deform_sample(*arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(ms_deform_sample(*arguments), out)
    finally:
        ms_deform._module.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ((5, 7), (3, 3))}, "L = 2"),
        ({"shapes": ((5, 7), (3, 3), (1, 2))}, "hold 46 pixels, value has 45"),
        ({"positions": torch.zeros(2, 11, 2, 3, 3, 2, dtype=torch.bfloat16)}, "must be float32"),
        ({"positions": torch.zeros(2, 11, 2, 3, 3)}, r"\(B, N, M, L, K, 2\)"),
        ({"weights": torch.zeros(2, 11, 2, 9)}, "weights"),
        ({"query": torch.zeros(2, 11, 2, 7)}, "query"),
        ({"key": torch.zeros(2, 45, 2, 7)}, "key"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"shapes": THREE, **make(THREE), **change}
    with pytest.raises(ValueError, match=message):
        ms_deform_sample(given["value"], given["shapes"], given["positions"], given["weights"])
        ms_deform_attend(given["query"], given["key"], given["value"], given["shapes"], given["positions"])
