"""What only a GPU can show: no waiting for the device, CUDA graphs, memory, and offsets beyond 32 bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dwtriton import DualWeightAssigner, DualWeightLoss, pack_targets
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.kernels import dual_weight_sums
from tests.support.kernel_cases import DEVICE
from tests.support.loss_cases import LOSSES, random_case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")]

SIZES, STRIDES = ((24, 40), (12, 20), (6, 10)), (8, 16, 32)


def gpu_inputs(case, dtype=torch.bfloat16):
    """Leaf tensors on the GPU, channels_last, and all of them in one list."""
    levels = case.tensors(dtype, torch.channels_last)
    inputs = [[level.detach().to("cuda").requires_grad_() for level in kind] for kind in levels]
    return inputs, [level for kind in inputs for level in kind]


def make_step(case, capacity=None):
    """A function of loss and gradients, and the tensors it reads."""
    inputs, flat = gpu_inputs(case)
    targets = pack_targets(case.targets(), "cuda", capacity)
    loss = DualWeightLoss(case.strides, backend="triton")

    def step():
        losses = loss(*inputs, targets)
        return torch.stack([losses[name] for name in LOSSES]).detach(), *torch.autograd.grad(sum(losses.values()), flat)

    return step, flat, targets


def test_nothing_waits_for_the_device():
    step, _, _ = make_step(random_case(1, [5, 0, 9], sizes=SIZES, strides=STRIDES))
    expected = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(got, expected))


def test_a_cuda_graph_replays_with_the_same_bits_for_other_inputs_and_targets():
    case, other = (random_case(seed, [6, 3], sizes=SIZES, strides=STRIDES) for seed in (1, 2))
    other.boxes[0], other.labels[0] = other.boxes[0][:2], other.labels[0][:2]
    step, flat, targets = make_step(case, capacity=32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    for now in (case, other):
        given, expected = make_step(now, capacity=32)[1:], make_step(now, capacity=32)[0]()
        for target, source in zip([*flat, *targets[:4]], [*given[0], *given[1][:4]]):
            target.data.copy_(source.data)
        for output in outputs:
            output.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(one, wanted) for one, wanted in zip(outputs, expected))


FIRST_CAPTURE = """
import torch
from benchmarks.cases import Size, make_case
from benchmarks.methods import make_step
from benchmarks.timing import capture_graph

case = make_case(Size(), 16, 7, torch.bfloat16, torch.device("cuda"))
losses, gradients = make_step("triton", case)()
leaves = [[level.detach().requires_grad_() for level in kind] for kind in case.inputs]
if LET_GO:
    losses = {name: loss.detach().clone() for name, loss in losses.items()}
    leaves = case.inputs
graph, (graph_losses, graph_gradients) = capture_graph(make_step("triton", case._replace(inputs=leaves)))
outputs = [*(loss.detach() for loss in graph_losses.values()), *graph_gradients]
for _ in range(2):
    for output in outputs:
        output.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip([*losses.values(), *gradients], outputs, strict=True))
print("the same bits")
"""


@pytest.mark.parametrize("let_go", [True, False], ids=["losses let go", "losses kept, other leaves"])
def test_the_first_capture_of_a_process_replays_the_same_bits_at_full_size(let_go):
    """16 x 800x1344 in bfloat16, after an eager call whose losses are let go, or kept while other leaves are captured.

    docs/performance.md#cuda-graphs says why it has to be one of the two.
    """
    if torch.cuda.mem_get_info()[0] < 4e9:
        pytest.skip("needs 4 GB of free GPU memory")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    code = FIRST_CAPTURE.replace("LET_GO", str(let_go))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same bits\n"


@pytest.mark.parametrize("boxes", [7, 1000])
def test_memory_beyond_the_gradients_stays_below_6_mb(boxes):
    sizes, strides = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11)), (8, 16, 32, 64, 128)
    shape = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    inputs = [[torch.zeros(16, c, *size, **shape) for size in sizes] for c in (80, 4, 1)]
    flat = [level for kind in inputs for level in kind]
    corner = torch.rand(boxes, 2) * 700
    target = {"boxes": torch.cat((corner, corner + 100), 1), "labels": torch.arange(boxes) % 80}
    targets = pack_targets([target] * 16, "cuda")
    loss = DualWeightLoss(strides, backend="triton")
    torch.autograd.grad(sum(loss(*inputs, targets).values()), flat)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(sum(loss(*inputs, targets).values()), flat)
    extra = torch.cuda.max_memory_allocated() - before - sum(level.nbytes for level in flat)
    assert 0 <= extra < 6e6


def test_a_batch_of_more_than_2_31_logits():
    """The last image has the gradients that it has alone."""
    size, classes = (256, 256), 512
    batch = 2**31 // (classes * size[0] * size[1]) + 1
    if torch.cuda.mem_get_info()[0] < 5 * batch * classes * size[0] * size[1]:
        pytest.skip("needs about 11 GB of free GPU memory")
    generator = torch.Generator("cuda").manual_seed(0)
    shape = {"device": "cuda", "dtype": torch.bfloat16, "memory_format": torch.channels_last}
    levels = [torch.empty(batch, c, *size, **shape).normal_(generator=generator) for c in (classes, 4, 1)]
    levels[1].exp_().mul_(50)
    target = {"boxes": torch.tensor([[100.0, 100, 900, 700]]), "labels": torch.tensor([3])}

    def gradients(images):
        inputs = [[level[images].requires_grad_()] for level in levels]
        targets = pack_targets([target] * len(inputs[0][0]), "cuda")
        sums, _ = dual_weight_sums(HeadOutputs(*inputs), targets, (8,), True)
        return torch.autograd.grad(sums.sum(), [level for kind in inputs for level in kind])

    for whole, alone in zip(gradients(slice(None)), gradients(slice(-1, None))):
        assert torch.equal(whole[-1:], alone)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_than_the_current_device():
    """Losses, gradients and the assigner's weights on cuda:1 are those on cuda:0, which is the current device."""
    case = random_case(1, [5, 0, 9], sizes=SIZES, strides=STRIDES)
    results = []
    for device in ("cuda:0", "cuda:1"):
        inputs = [[level.detach().to(device).requires_grad_() for level in kind] for kind in case.tensors()]
        targets = pack_targets(case.targets(), device)
        losses = DualWeightLoss(STRIDES, backend="triton")(*inputs, targets)
        grads = torch.autograd.grad(sum(losses.values()), [level for kind in inputs for level in kind])
        weights = DualWeightAssigner(STRIDES, backend="triton")(*inputs, targets)
        parts = [*losses.values(), *grads, *(part for image in weights for part in image)]
        assert {part.device for part in parts} == {torch.device(device)}
        results.append([part.detach().cpu() for part in parts])
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(one, other) for one, other in zip(*results))
