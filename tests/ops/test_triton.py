"""The Triton kernels against the definition: in Triton's interpreter anywhere, on a GPU where there is one.

They are also compiled for GPUs, which needs none.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

AGREEMENT = Path(__file__).with_name("test_ms_deform.py")
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
        inputs = agreement.make(agreement.THREE, B=1, N=7)
        for dtype in (torch.float16,) if deterministic else (torch.bfloat16, torch.float16):
            halves = {key: tensor if key == "positions" else tensor.to(dtype) for key, tensor in inputs.items()}
            out, grads = agreement.run(name, halves, agreement.THREE)
            with agreement.use_backend("reference"):
                expected, expected_grads = agreement.run(name, agreement.double(halves), agreement.THREE)
            # The interpreter truncates to bfloat16 where a GPU rounds.
            assert out.dtype == dtype and agreement.error(out, expected) < 1.01 * torch.finfo(dtype).eps
            for key, grad in grads.items():
                assert agreement.error(grad, expected_grads[key]) < 4 * torch.finfo(dtype).eps, (name, dtype, key)
agreement.test_a_position_that_is_not_finite_samples_zero_and_has_no_gradient("triton")
agreement.test_only_the_gradients_asked_for("sum")
agreement.test_only_the_gradients_asked_for("attend")
from cssformer.ops import ms_deform
assert ms_deform._module.cache_info().currsize == 1, "another backend was asked"
"""


def test_in_the_interpreter() -> None:
    """In a process of its own, because Triton decides at import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CSSFORMER_SAMPLING": "triton"}
    command = [sys.executable, "-c", CHECK, str(AGREEMENT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cssformer.ops import triton as cuda, ms_deform_attend, ms_deform_sample

capability, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
POINTERS |= {torch.int32: "*i32", torch.int64: "*i64"}
compiled = set()

def compile_only(kernel, grid, *arguments, **constants):
    # As Triton does at a launch: a number that is 1 is a constant, and what 16 divides is known to the compiler.
    given = dict(zip(kernel.arg_names, arguments)) | constants
    constants |= {name: value for name, value in given.items() if type(value) is int and value == 1}
    types = {name: "fp32" if type(value) is float else "i32" for name, value in given.items()}
    types |= {name: POINTERS[value.dtype] for name, value in given.items() if isinstance(value, torch.Tensor)}
    types |= {name: "constexpr" for name in constants}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or (types[name] == "i32" and given[name] % 16 == 0)
    }
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants, aligned)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=cuda.OPTIONS)
    assert code.asm["cubin"]
    additions = [line for line in code.asm["ptx"].splitlines() if "atom." in line or "red.global" in line]
    assert all("relaxed" in line for line in additions), additions
    compiled.add((kernel.fn.__name__, constants["CHANNELS"], constants.get("FIXED")))
    assert bool(additions) == ("FIXED" in constants)

cuda._launch = compile_only
for deterministic in (False, True):
    torch.use_deterministic_algorithms(deterministic)
    for heads, channels, shapes, points in ((8, 32, ((8, 8), (4, 4)), 16), (1, 1, ((1, 1),), 1)):
        if deterministic and channels == 1:
            continue
        maps = sum(height * width for height, width in shapes)
        key, value = (torch.rand(1, maps, heads, channels, dtype=dtype, requires_grad=True) for _ in range(2))
        positions = torch.rand(1, maps, heads, len(shapes), points, 2, requires_grad=True)
        weights = torch.rand(positions.shape[:-1], dtype=dtype, requires_grad=True)
        query = torch.rand(1, maps, heads, channels, dtype=dtype, requires_grad=True)
        ms_deform_sample(value, shapes, positions, weights).sum().backward()
        ms_deform_attend(query, key, value, shapes, positions).sum().backward()
assert compiled == {
    *((name, channels, None) for name in ("sum_forward", "attend_forward") for channels in (32, 1)),
    *((name, 32, fixed) for name in ("sum_backward", "attend_backward") for fixed in (False, True)),
    *((name, 1, False) for name in ("sum_backward", "attend_backward")),
}, compiled
"""

GPUS = [
    pytest.param(75, "float16", id="T4", marks=pytest.mark.slow),
    pytest.param(80, "bfloat16", id="A100"),
    pytest.param(90, "float32", id="H100", marks=pytest.mark.slow),
    pytest.param(120, "bfloat16", id="RTX 50", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("capability", "dtype"), GPUS)
def test_compiles_for_gpus(capability: int, dtype: str, tmp_path: Path) -> None:
    """To machine code, without a GPU; what the kernels add to maps waits for nothing."""
    environment = {**os.environ, "CSSFORMER_SAMPLING": "triton", "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE, str(capability), dtype]
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
