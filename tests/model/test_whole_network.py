"""One forward in every mode: the same tests for backbones of every kind."""

import copy
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from cssformer import CSSFormer
from cssformer.model import SegmentationOutput, segmentation_loss
from cssformer.utils.errors import UserError

SMALL_VIT = {"depth": 4, "embed_dim": 96}
# Every kind of block, few of each: what compiles and exports is paid for by the block.
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "mobilenetv2_050": {"depth_multiplier": 0.3},
    "swin_tiny_patch4_window7_224": {"depths": [2, 1, 1, 1], "embed_dim": 48, "num_heads": [3, 3, 6, 6]},
    "convnext_atto": {"depths": [1, 1, 1, 1]},
    "pvt_v2_b0": {"depths": [1, 1, 1, 1]},
    "vit_small_patch16_dinov3": SMALL_VIT,
    "vit_small_patch14_reg4_dinov2": SMALL_VIT,
}
SMALL = {"num_classes": 5, "channels": 32, "heads": 4, "points": 2, "dropout": 0.0}


@pytest.fixture(scope="module", params=BACKBONES)
def model(request: pytest.FixtureRequest) -> CSSFormer:
    torch.manual_seed(0)
    network = CSSFormer(request.param, **SMALL, backbone_args=BACKBONES[request.param])
    for parameter in network.parameters():
        if not parameter.abs().max():
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_same_bits_with_and_without_gradients(model: CSSFormer, images: Tensor) -> None:
    with_gradients = model(images)
    with torch.no_grad():
        assert torch.equal(model(images), with_gradients)
    with torch.inference_mode():
        assert torch.equal(model(images), with_gradients)


def test_training_mode_gives_the_same_logits_and_the_auxiliary_heads(model: CSSFormer, images: Tensor) -> None:
    expected = model(images)
    try:
        model.train()
        # What differs in training by intent.
        for part in model.backbone.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) or "drop" in type(part).__name__.lower():
                part.eval()
        output = model(images)
    finally:
        model.eval()
    assert isinstance(output, SegmentationOutput) and output.aux.shape == output.logits.shape == expected.shape
    torch.testing.assert_close(output.logits, expected)


def test_a_backbone_compiles_to_one_graph_and_exports(model: CSSFormer, images: Tensor) -> None:
    """The rest is the same for all: the whole network compiles and exports below, which proves what AOT does too."""
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model.backbone(images)
        compiled = torch.compile(model.backbone, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-5)
        program = torch.export.export(model.backbone, (images,)).module()
        torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_traces(model: CSSFormer, images: Tensor) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(model, images, check_trace=False)
        torch.testing.assert_close(traced(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_shapes_are_known_without_data(grad: bool) -> None:
    """Of any backbone while it compiles and exports, above."""
    model = CSSFormer("test_resnet", **SMALL).eval()
    with torch.set_grad_enabled(grad), FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.empty(2, 3, 64, 96)).shape == (2, 5, 64, 96)


def test_compiles_for_every_size_at_once() -> None:
    """To one graph whose sizes are variables. What lies behind the graph, the export below goes through too."""
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", **SMALL).eval()
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs, dynamic=True)
    with torch.no_grad():
        for height, width in ((64, 96), (128, 160), (192, 224), (224, 96)):
            images = torch.rand(2, 3, height, width)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
            assert graphs.frame_count == 1


def test_exports_with_any_size(images: Tensor) -> None:
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", **SMALL).eval()
    sides = {2: 32 * torch.export.Dim("rows", min=2, max=32), 3: 32 * torch.export.Dim("columns", min=2, max=32)}
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=(sides,)).module()
        for height, width in ((64, 96), (128, 64), (160, 224)):
            other = torch.rand(2, 3, height, width)
            torch.testing.assert_close(program(other), model(other), rtol=1e-4, atol=1e-5)


def test_hooks_fire_alike_with_and_without_gradients(model: CSSFormer, images: Tensor) -> None:
    calls = []
    for grad in (True, False):
        seen: Counter[str] = Counter()
        hooks = [
            part.register_forward_hook(lambda *_, name=name, seen=seen: seen.update([name]))
            for name, part in model.named_modules()
            if not list(part.children())
        ]
        with torch.set_grad_enabled(grad):
            model(images)
        for hook in hooks:
            hook.remove()
        calls.append(seen)
    assert calls[0] == calls[1]
    expected = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    assert expected <= calls[0].keys()


@pytest.mark.parametrize("assign", [False, True])
def test_built_on_the_meta_device_and_loaded(model: CSSFormer, images: Tensor, assign: bool) -> None:
    try:
        with torch.device("meta"):
            empty = CSSFormer(**model.hparams).eval()
        if not assign:
            empty = empty.to_empty(device="cpu")
            for buffer in empty.buffers():
                buffer.fill_(7)
        empty.load_state_dict(model.state_dict(), assign=assign)
    except UserError as error:
        if hasattr(WindowAttention, "init_non_persistent_buffers"):
            raise
        pytest.skip(f"an older timm: {error}")
    with torch.no_grad():
        torch.testing.assert_close(empty(images), model(images), rtol=0, atol=0)


def test_constants_that_timm_cannot_compute_anew_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(WindowAttention, "init_non_persistent_buffers", raising=False)
    try:
        with torch.device("meta"):
            empty = CSSFormer("swin_tiny_patch4_window7_224", **SMALL)
    except UserError as error:
        pytest.skip(f"an older timm: {error}")
    with pytest.raises(UserError, match="does not compute relative_position_index of this backbone anew"):
        empty.load_state_dict(CSSFormer("swin_tiny_patch4_window7_224", **SMALL).state_dict(), assign=True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_the_network_gives_the_same_gradients(model: CSSFormer, images: Tensor, reentrant: bool) -> None:
    labels = torch.randint(0, 5, (2, 64, 96), generator=torch.Generator().manual_seed(2))
    gradients = []
    for forward in (model, lambda given: checkpoint(model, given, use_reentrant=reentrant)):
        model.zero_grad()
        leaf = images.clone().requires_grad_()
        segmentation_loss(forward(leaf), labels).backward()
        gradients.append([leaf.grad, *(value.grad.clone() for value in model.parameters() if value.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_travel_as_plain_safetensors(model: CSSFormer, images: Tensor, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = CSSFormer(**{**model.hparams, "mean": None, "std": None}).eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(other(images), expected)
        assert torch.equal(CSSFormer.from_pretrained(tmp_path / "model")(images), expected)
        assert torch.equal(copy.deepcopy(model)(images), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(images), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.15)])
def test_the_whole_network_can_be_cast(model: CSSFormer, images: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    with torch.no_grad():
        expected, found = model(images), copy.deepcopy(model).to(dtype)(images.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_quantisation_converts_every_linear_layer(images: Tensor) -> None:
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", **SMALL).eval()
    linear = sum(type(part) is nn.Linear for part in model.modules())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    converted = sum(type(part) is torch.ao.nn.quantized.dynamic.Linear for part in quantised.modules())
    assert converted == linear > 30
    assert quantised(images).shape == (2, 5, 64, 96)


@pytest.mark.parametrize("grad", [True, False])
def test_torchs_counter_sees_the_papers_multiply_adds(grad: bool) -> None:
    """The paper's 2.4 and 39.9 G at 480x480 are 2.5 and 40.1 in this reading."""
    counts = {}
    with torch.device("meta"):
        for name, switches in {
            "cia": {"fusion": False},
            "fusion": {"cia": False},
            "": {"cia": False, "fusion": False},
        }.items():
            model = CSSFormer("test_resnet", 150, **switches).eval()
            with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, 480, 480))
            counts[name] = counter.get_total_flops() / 2e9
    assert round(counts["cia"] - counts[""], 1) == 2.5
    assert round(counts["fusion"] - counts[""], 1) == 40.1


DISTRIBUTED = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from cssformer import CSSFormer
from cssformer.model import SegmentationOutput, segmentation_loss
from cssformer.utils.errors import UserError
torch.set_num_threads(1)
child = os.fork()
rank = int(child == 0)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
torch.manual_seed(0)
still = {"dropout": 0.0, "backbone_args": {"drop_path_rate": 0.0}}
model = CSSFormer("convnext_atto", num_classes=5, channels=32, heads=4, points=2, **still)
images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
if rank == 0:
    segmentation_loss(model.train()(images), labels).backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
ddp = DistributedDataParallel(model.train())
output = ddp(images[rank : rank + 1])
assert isinstance(output, SegmentationOutput)
segmentation_loss(output, labels[rank : rank + 1]).backward()
if rank == 0:
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-3, atol=1e-5)
dist.destroy_process_group()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


def test_two_processes_share_the_gradients_of_one(tmp_path: Path) -> None:
    """Both forked once all is imported."""
    command = [sys.executable, "-c", DISTRIBUTED, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


GOLDEN = [-0.09013332, -0.1358143, -0.01674932, -0.09214784, -0.1331272, -0.01535878, 0.04920121]


def fill(model: nn.Module) -> None:
    """Numbers that no library's initialisation decides."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "pixel_" not in name and not name.endswith("running_var"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def test_golden_logits() -> None:
    """Weights of before mean the same today; whoever must change this raises the format of saved models."""
    model = CSSFormer("resnet10t", num_classes=3, channels=16, heads=2, points=2).eval()
    fill(model)
    ramp = torch.linspace(0, 1, 3 * 40 * 72).view(1, 3, 40, 72)
    with torch.no_grad():
        logits = model(ramp)
    assert logits.shape == (1, 3, 40, 72)
    found = [*logits[0, :, 3, 5].tolist(), *logits[0, :, 39, 71].tolist(), logits.std().item()]
    assert found == pytest.approx(GOLDEN, rel=1e-4, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same_logits_and_gradients() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    here = CSSFormer("test_resnet", 5, channels=32, heads=4, points=2, dropout=0.0).train()
    there = copy.deepcopy(here).cuda()
    losses = [segmentation_loss(here(images), labels), segmentation_loss(there(images.cuda()), labels.cuda())]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-4, atol=1e-4)
    for expected, found in zip(here.parameters(), there.parameters(), strict=True):
        bound = 1e-2 * float(expected.grad.abs().max()) + 1e-5
        torch.testing.assert_close(found.grad.cpu(), expected.grad, rtol=1e-2, atol=bound)
