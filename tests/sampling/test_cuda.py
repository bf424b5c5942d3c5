"""The Triton kernels against the definition: in Triton's interpreter anywhere, compiled where there is a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

AGREEMENT = Path(__file__).with_name("test_sampling.py")
SHAPES = ((9, 12), (5, 6), (1, 1))

CHECK = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("agreement", sys.argv[1])
agreement = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agreement)
for deterministic in (False, True):
    torch.use_deterministic_algorithms(deterministic)
    for name in ("sum", "attend"):
        for inputs, shapes in (
            (agreement.make(agreement.THREE, D=6), agreement.THREE),
            (agreement.make(((4, 3),), N=0), ((4, 3),)),
            (agreement.awkward(), agreement.THREE),
        ):
            out, grads = agreement.run(name, inputs, shapes)
            with agreement.use_backend("reference"):
                expected, expected_grads = agreement.run(name, agreement.double(inputs), shapes)
            assert agreement.error(out, expected) < 1e-5, (name, deterministic)
            for key, grad in grads.items():
                if key == "positions" and shapes == agreement.THREE and inputs["positions"].shape[2] == 1:
                    continue  # at exact integers either slope is right
                assert agreement.error(grad, expected_grads[key]) < 1e-5, (name, deterministic, key)
        inputs = agreement.make(agreement.THREE)
        for dtype in (torch.bfloat16, torch.float16):
            halves = {key: tensor if key == "positions" else tensor.to(dtype) for key, tensor in inputs.items()}
            out, grads = agreement.run(name, halves, agreement.THREE)
            with agreement.use_backend("reference"):
                expected, expected_grads = agreement.run(name, agreement.double(halves), agreement.THREE)
            # The interpreter truncates to bfloat16 where a GPU rounds.
            assert out.dtype == dtype and agreement.error(out, expected) < 1.01 * torch.finfo(dtype).eps
            for key, grad in grads.items():
                assert agreement.error(grad, expected_grads[key]) < 4 * torch.finfo(dtype).eps, (name, dtype, key)
agreement.test_a_position_that_is_not_finite_samples_zero_and_has_no_gradient("cuda")
agreement.test_only_the_gradients_asked_for("sum")
agreement.test_only_the_gradients_asked_for("attend")
from cssformer.sampling import operator
assert operator._module.cache_info().currsize == 1, "another backend was asked"
"""


def test_in_the_interpreter() -> None:
    """In a process of its own, because Triton decides at import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CSSFORMER_SAMPLING": "cuda"}
    command = [sys.executable, "-c", CHECK, str(AGREEMENT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["sum", "attend"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("deterministic", [False, True])
def test_on_the_gpu(name: str, dtype: torch.dtype, deterministic: bool) -> None:
    spec = importlib.util.spec_from_file_location("agreement", AGREEMENT)
    assert spec is not None and spec.loader is not None
    agreement = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(agreement)
    inputs = agreement.make(SHAPES, N=300, M=8, D=32, K=4)
    inputs = {key: (tensor if key == "positions" else tensor.to(dtype)).cuda() for key, tensor in inputs.items()}
    expected, expected_grads = agreement.run(name, agreement.double(inputs), SHAPES)
    bound = max(1e-5, 4 * torch.finfo(dtype).eps)
    torch.use_deterministic_algorithms(deterministic)
    try:
        runs = [agreement.run(name, inputs, SHAPES) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for out, grads in runs:
        assert agreement.error(out, expected) < bound
        assert all(agreement.error(grads[key], expected_grads[key]) < bound for key in grads)
    if deterministic:
        (_, first), (_, second) = runs
        assert all(torch.equal(first[key], second[key]) for key in first)
