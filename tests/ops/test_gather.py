"""The form of sampling for exports against the definition, and against loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cssformer.ops import gather, reference, use_backend
from tests.ops.test_ms_deform import THREE, Shapes, awkward, both, double, loops, make, run

# Pixels on edges, half pixels, far outside, and anything between.
PLACES = st.one_of(
    st.integers(-3, 12).map(lambda half: half / 2),
    st.sampled_from([-1.0, -1e-7, -1e4, 1e4, 1e30, float("nan"), float("inf"), float("-inf")]),
    st.floats(-4, 12, width=32),
)


@settings(max_examples=60)
@given(
    name=st.sampled_from(["sum", "attend"]),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(tuple),
    B=st.integers(1, 3),
    M=st.integers(1, 3),
    K=st.integers(1, 9),
    places=st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_it_is_the_definition(
    name: str, shapes: Shapes, B: int, M: int, K: int, places: list[tuple[float, float]], seed: int
) -> None:
    inputs = double(make(shapes, B, 3, M, 8, K, seed))
    positions = inputs["positions"].view(-1, 2)
    positions[: len(places)] = torch.tensor(places, dtype=torch.float64)[: len(positions)]
    if name == "sum":
        arguments = (inputs["value"], shapes, inputs["positions"], inputs["weights"])
        found, expected = (kind.ms_deform_sample(*arguments) for kind in (gather, reference))
    else:
        arguments = (inputs["query"], inputs["key"], inputs["value"], shapes, inputs["positions"])
        found, expected = (kind.ms_deform_attend(*arguments) for kind in (gather, reference))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", ["sum", "attend"])
@pytest.mark.parametrize("inputs", [make(THREE), awkward()], ids=["random", "awkward"])
def test_against_loops(name: str, inputs: dict[str, Tensor]) -> None:
    with use_backend("gather"):
        out, _ = run(name, inputs, THREE)
    np.testing.assert_allclose(out, loops(name, inputs, THREE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    inputs = {key: value if key == "positions" else value.to(dtype) for key, value in make(THREE).items()}
    with use_backend("gather"):
        found = both(*inputs.values())
    with use_backend("reference"):
        torch.testing.assert_close(found, both(*inputs.values()), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    assert found.dtype == dtype


class Both(torch.nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return both(*inputs)


def test_exports_as_gathers_alone() -> None:
    inputs = tuple(make(THREE).values())
    with use_backend("gather"):
        program = torch.export.export(Both(), inputs)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("grid_sample" in target or "cssformer" in target for target in targets)
    torch.testing.assert_close(program.module()(*inputs), both(*inputs), rtol=1e-4, atol=1e-5)


def test_exports_in_runs_of_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cssformer.ops.runs.LARGE", 16)
    inputs = tuple(make(THREE, 2, 5, 3).values())
    batch = torch.export.Dim("batch", min=1, max=1000)
    with use_backend("gather"):
        program = torch.export.export(Both(), inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))
    assert [str(node.target) for node in program.graph.nodes].count("map_impl") == 2
    for B in (1, 3, 16):
        inputs = tuple(make(THREE, B, 5, 3, seed=B).values())
        torch.testing.assert_close(program.module()(*inputs), both(*inputs), rtol=1e-4, atol=1e-5)
