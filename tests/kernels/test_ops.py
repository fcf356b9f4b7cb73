"""The kernels as PyTorch operators: checked by opcheck, compiled in one graph, and well-behaved under autograd."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch._inductor
import torch.multiprocessing as mp
from torch import distributed, nn

from dwtriton import DualWeightAssigner, DualWeightLoss, pack_targets
from dwtriton.core.targets import PackedTargets
from tests.support.loss_cases import LOSSES, Unused, random_case

SIZES, STRIDES = ((4, 5), (2, 2)), (8, 16)


def small_case(boxes=(2, 1), seed=3):
    return random_case(seed, list(boxes), classes=3, sizes=SIZES, strides=STRIDES)


def arguments(case, device, dtype=torch.float32, iscrowd=True):
    """Of the operator `dual_weight`."""
    levels = [[level.detach().to(device).requires_grad_() for level in kind] for kind in case.tensors(dtype)]
    packed = pack_targets(case.targets(), device, capacity=sum(map(len, case.boxes)))
    return *levels, *(packed if iscrowd else packed._replace(iscrowd=None)), [float(s) for s in STRIDES], True


@pytest.mark.parametrize("boxes", [(2, 1), (0, 0)], ids=["boxes", "no boxes"])
@pytest.mark.parametrize("iscrowd", [True, False], ids=["crowd flags", "none"])
def test_the_operator_keeps_its_contract(device, boxes, iscrowd):
    from dwtriton.kernels.ops import dual_weight

    torch.library.opcheck(dual_weight, arguments(small_case(boxes), device, iscrowd=iscrowd))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_operator_of_the_gradients_keeps_its_contract(device, dtype):
    from dwtriton.kernels.ops import dual_weight, dual_weight_backward

    given = arguments(small_case(), device, dtype)
    losses, _, poison, table = dual_weight(*given)
    detached = [[level.detach() for level in kind] for kind in given[:3]]
    backward = (torch.ones_like(losses), *detached, [given[5], poison, table], *given[8:])
    torch.library.opcheck(dual_weight_backward, backward)


class Head(nn.Module):
    """A small head and the loss, as a detector compiles them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.loss = DualWeightLoss(STRIDES, backend="triton")

    def forward(self, features, targets):
        outputs = [self.conv(level) for level in features]
        z, d, u = ([part(out) for out in outputs] for part in (logits, distances, objectness))
        return self.loss(z, d, u, targets)


def logits(output):
    return output[:, :3]


def distances(output):
    return 10 * output[:, 3:7].float().exp()


def objectness(output):
    return output[:, 7:]


def run_head(head, forward, targets, features, autocast):
    head.zero_grad()
    with torch.autocast(features[0].device.type, torch.bfloat16, enabled=autocast):
        losses = forward(features, targets)
    (2 * losses["loss_cls_pos"] + losses["loss_loc"] + losses["loss_cls_neg"]).backward()
    return torch.stack([losses[name].detach() for name in LOSSES]), head.conv.weight.grad.clone()


@torch._inductor.config.patch(force_disable_caches=True)  # caches outlive a change of the operator
@pytest.mark.parametrize(
    ("autocast", "backend"),
    [
        pytest.param(False, "aot_eager", id="float32"),
        pytest.param(True, "inductor", id="autocast, generated code"),
        pytest.param(False, "inductor", id="float32, generated code", marks=pytest.mark.slow),
    ],
)
def test_head_and_loss_compile_to_one_graph_for_any_box_counts(device, backend, autocast):
    """The head's weight gradients, sums over levels, may be rounded otherwise; under autocast they are bfloat16."""
    limit = torch.finfo(torch.bfloat16).eps if autocast else 1e-4
    graphs = 0

    def counting(graph, inputs):
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    head = Head().to(device)
    compiled = torch.compile(head, fullgraph=True, backend=counting)
    features = [torch.randn(2, 4, *size, device=device) for size in SIZES]
    for boxes in [(2, 1), (0, 0), (1, 0), (4, 3), (0, 1)]:
        targets = pack_targets(small_case(boxes).targets(), device)
        expected = run_head(head, head, targets, features, autocast)
        got = run_head(head, compiled, targets, features, autocast)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(got[1], expected[1], rtol=0, atol=limit * expected[1].abs().max().item())
    assert graphs == 1


def flat_inputs(case, device):
    inputs = [[level.detach().to(device).requires_grad_() for level in kind] for kind in case.tensors()]
    return inputs, [level for kind in inputs for level in kind]


def test_retained_graph_gives_the_same_gradients_again(device):
    case = small_case()
    inputs, flat = flat_inputs(case, device)
    losses = DualWeightLoss(STRIDES, backend="triton")(*inputs, case.targets())
    first = torch.autograd.grad(sum(losses.values()), flat, retain_graph=True)
    again = torch.autograd.grad(sum(losses.values()), flat, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, again))
    parts = [torch.autograd.grad(losses[name], flat, retain_graph=True) for name in LOSSES]
    for whole, *single in zip(first, *parts):
        torch.testing.assert_close(sum(single), whole, rtol=1e-5, atol=1e-7)


def test_second_derivatives_are_refused(device):
    case = small_case()
    inputs, flat = flat_inputs(case, device)
    losses = DualWeightLoss(STRIDES, backend="triton")(*inputs, case.targets())
    with pytest.raises(RuntimeError, match=r"no second derivative"):
        torch.autograd.grad(sum(losses.values()), flat, create_graph=True)


def test_inputs_changed_in_place_before_backward_are_noticed(device):
    case = small_case()
    inputs, _ = flat_inputs(case, device)
    work = [[level * 1 for level in kind] for kind in inputs]
    total = sum(DualWeightLoss(STRIDES, backend="triton")(*work, case.targets()).values())
    work[0][0].add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        total.backward()


def test_losses_that_get_no_gradient_give_none(device):
    inputs, flat = flat_inputs(small_case(), device)
    losses = DualWeightLoss(STRIDES, backend="triton")(*inputs, small_case().targets())
    total = Unused.apply(losses["loss_loc"]) + 2 * flat[0].sum()
    grads = torch.autograd.grad(total, flat, allow_unused=True)
    assert torch.equal(grads[0], torch.full_like(flat[0], 2))
    assert grads[1:] == (None,) * (len(flat) - 1)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_only_what_needs_gradients_gets_them(device, kind):
    case = small_case()
    inputs, _ = flat_inputs(case, device)
    inputs = [levels if i == kind else [level.detach() for level in levels] for i, levels in enumerate(inputs)]
    sum(DualWeightLoss(STRIDES, backend="triton")(*inputs, case.targets()).values()).backward()
    assert all((level.grad is not None) == (i == kind) for i, levels in enumerate(inputs) for level in levels)


def test_loss_without_gradients_is_the_same(device):
    case = small_case()
    inputs, _ = flat_inputs(case, device)
    loss = DualWeightLoss(STRIDES, backend="triton")
    with torch.no_grad():
        quiet = loss(*inputs, case.targets())
    for name, value in loss(*inputs, case.targets()).items():
        assert torch.equal(quiet[name], value)
        assert value.requires_grad
        assert not quiet[name].requires_grad


def test_what_the_kernels_cannot_take_is_refused_before_a_launch(device):
    from dwtriton.kernels.inputs import read_boxes

    case = small_case()
    loss = DualWeightLoss(STRIDES, backend="triton")
    inputs = [[level.to(device) for level in kind] for kind in case.tensors(torch.float64)]
    with pytest.raises(ValueError, match=r'for torch.float64 use backend="torch"'):
        loss(*inputs, case.targets())
    for batch, classes, size, message in (
        (1, 2048, 2**10, r"1048576 points with 2048 classes in an image are more"),
        (1, 1, 2**12, r"16777216 points with 1 classes in an image are more"),
        (2**13, 1, 2**9, r"8192 images of 262144 points are more"),
    ):
        huge = [[torch.zeros(1, device=device).expand(batch, c, size, size)] for c in (classes, 4, 1)]
        targets = pack_targets([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * batch, device)
        with pytest.raises(ValueError, match=message):
            DualWeightLoss((8,), backend="triton")(*huge, targets)
    boxes, labels = torch.zeros(1, 4).expand(2**24, 4), torch.zeros(1).long().expand(2**24)
    with pytest.raises(ValueError, match=r"16777216 boxes in the batch; the kernels take less than 2\^24"):
        read_boxes(PackedTargets(boxes, labels, offsets=torch.tensor([0, 2**24])))


def rank_losses(rank, folder):
    """One of two ranks: its own images, the normalisers of both."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    case = small_case([(3, 1), (0, 1)][rank], seed=rank)
    inputs = case.tensors()
    losses = DualWeightLoss(STRIDES, backend="triton")(*inputs, case.targets())
    (gradient,) = torch.autograd.grad(sum(losses.values()), inputs[0][:1])
    torch.save((torch.stack(list(losses.values())).detach(), gradient), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_normalisers_are_means_over_ranks_in_values_and_gradients(tmp_path, device):
    if device != "cpu":
        pytest.skip("gloo ranks run on CPUs; the reduction is the same code")
    mp.spawn(rank_losses, args=(str(tmp_path),), nprocs=2)
    truths = [small_case(boxes, seed=rank).truth() for rank, boxes in enumerate([(3, 1), (0, 1)])]
    pos_norm = max(1, (4 + 1) / 2)
    neg_norm = max(1, sum(truth.image_neg_counts.sum() for truth in truths) / 2)
    for rank, truth in enumerate(truths):
        losses, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        expected = torch.tensor(truth.image_sums.sum(0) / [pos_norm, pos_norm, neg_norm])
        torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=0)
        factors = (truth.pos_norm / pos_norm, truth.pos_norm / pos_norm, truth.neg_norm / neg_norm)
        case = small_case([(3, 1), (0, 1)][rank], seed=rank)
        wanted = np.array(case.truth(factors=factors).grad_z)[:, : 4 * 5].swapaxes(1, 2).reshape(gradient.shape)
        np.testing.assert_allclose(gradient.numpy(), wanted, atol=1e-4 * np.abs(wanted).max())


def test_every_launch_is_on_the_device_of_its_tensors(device, monkeypatch):
    """Triton launches on the current device: the loss, its gradient and the assigner must make it that of the boxes."""
    from triton.runtime.jit import KernelInterface

    current, launched_on = [], []

    @contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    def launch(kernel, grid):
        launched_on.append(current[-1] if current else None)
        return lambda *args, **kwargs: kernel.run(*args, grid=grid, warmup=False, **kwargs)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(KernelInterface, "__getitem__", launch)
    case = small_case()
    inputs, flat = flat_inputs(case, device)
    losses = DualWeightLoss(STRIDES, backend="triton")(*inputs, case.targets())
    torch.autograd.grad(sum(losses.values()), flat)
    before = len(launched_on)
    DualWeightAssigner(STRIDES, backend="triton")(*inputs, case.targets())
    assert 2 <= before < len(launched_on)
    assert set(launched_on) == {flat[0].device}
