"""DualWeightLoss and DualWeightAssigner as a user meets them: settings, errors, imports, memory, ranks."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed

from dwtriton import DualWeightAssigner, DualWeightLoss, pack_targets
from tests.support.loss_cases import LOSSES, random_case
from tests.support.peak import peak_bytes

CASE = random_case(1, [2, 1])


def changed(kind, level, change):
    """Inputs of CASE with one tensor changed."""
    inputs = CASE.tensors()
    inputs[kind][level] = change(inputs[kind][level].detach())
    return inputs


BAD_INPUTS = {
    "too few levels": (
        [CASE.tensors()[0][:3], *CASE.tensors()[1:]],
        r"cls_logits has 3 levels, but the strides are \(8, ",
    ),
    "not a list": ([CASE.tensors()[0][0], *CASE.tensors()[1:]], r"cls_logits must be a list of tensors"),
    "classes differ": (
        changed(0, 2, lambda t: t[:, :2]),
        r"cls_logits\[2\] must be \(2, 3, H, W\).*not \(2, 2, 3, 4\)",
    ),
    "three dimensions": (changed(0, 0, lambda t: t[0]), r"cls_logits\[0\] must be \(B, C, H, W\)"),
    "empty level": (changed(0, 4, lambda t: t[..., :0]), r"cls_logits\[4\] must be .* not empty"),
    "batches differ": (changed(1, 1, lambda t: t[:1]), r"box_distances\[1\] must be \(2, 4, 6, 8\)"),
    "sizes differ": (changed(2, 0, lambda t: t[:, :, 1:]), r"objectness\[0\] must be \(2, 1, 12, 16\)"),
    "integers": (changed(1, 3, torch.Tensor.int), r"box_distances\[3\] must be a floating tensor"),
    "devices differ": (changed(2, 2, lambda t: t.to("meta")), r"objectness\[2\] lies on meta, cls_logits\[0\] on cpu"),
}


@pytest.mark.parametrize("module", [DualWeightLoss, DualWeightAssigner])
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_name_the_level(name, module):
    inputs, message = BAD_INPUTS[name]
    with pytest.raises(ValueError, match=message):
        module()(*inputs, CASE.targets())


@pytest.mark.parametrize("module", [DualWeightLoss, DualWeightAssigner])
def test_bad_targets_name_the_image(module):
    first, second = CASE.targets()
    with pytest.raises(ValueError, match=r"list with one dict for each image, not dict"):
        module()(*CASE.tensors(), first)
    with pytest.raises(ValueError, match=r"image 1: expected a dict"):
        module()(*CASE.tensors(), [first, None])
    with pytest.raises(ValueError, match=r"targets of 1 images for logits of 2"):
        module()(*CASE.tensors(), [first])
    high = second | {"labels": torch.tensor([3])}
    with pytest.raises(ValueError, match=r"image 1, box 0: .*below the number of classes, 3"):
        module()(*CASE.tensors(), [first, high])
    with pytest.raises(ValueError, match=r"image 1, box 0: .*below the number of classes, 3"):
        module()(*CASE.tensors(), pack_targets([first, high], "cpu"))
    packed = pack_targets([first, second], "cpu").to("meta")
    with pytest.raises(ValueError, match=r"packed targets lie on meta, logits on cpu"):
        module()(*CASE.tensors(), packed)


def test_settings_are_checked_at_once():
    with pytest.raises(ValueError, match=r"no backend 'cuda'"):
        DualWeightLoss(backend="cuda")
    for strides in ((), (8, 0)):
        with pytest.raises(ValueError, match=r"strides must be positive"):
            DualWeightLoss(strides)
    assert repr(DualWeightLoss()) == "DualWeightLoss(strides=(8, 16, 32, 64, 128), soft_prior=True, backend='auto')"


def test_losses_are_named_scalars_in_float32():
    losses = DualWeightLoss()(*CASE.tensors(torch.bfloat16), CASE.targets())
    assert tuple(losses) == LOSSES
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())


def test_nothing_heavy_is_imported():
    code = (
        "import sys, dwtriton; from dwtriton import DualWeightLoss, DualWeightAssigner; DualWeightLoss();"
        "heavy = {'triton', 'pycocotools', 'pydantic', 'matplotlib', 'torchvision', 'torch._dynamo'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def memory_of(boxes, whole_images):
    """Peak bytes beyond inputs and gradients at two images of 800x1344 and 80 classes."""
    sizes = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    inputs = [[torch.zeros(2, c, *size, requires_grad=True) for size in sizes] for c in (80, 4, 1)]
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(boxes, 2, generator=generator) * 700
    corners = torch.cat((corner, corner + 10 * 40 ** torch.rand(boxes, 2, generator=generator)), 1)
    if whole_images:
        corners[:] = torch.tensor([-1.0, -1, 1345, 801])
    targets = [{"boxes": corners, "labels": torch.arange(boxes) % 80}] * 2
    flat = [level for kind in inputs for level in kind]
    peak = peak_bytes(lambda: torch.autograd.grad(sum(DualWeightLoss()(*inputs, targets).values()), flat))
    return peak - sum(level.nbytes for level in flat)


@pytest.mark.parametrize(("boxes", "whole_images"), [(1000, False), (50, True)], ids=["1000", "50 whole images"])
def test_memory_stays_below_45_mb_whatever_the_boxes(boxes, whole_images):
    assert 20e6 < memory_of(boxes, whole_images) < 45e6  # below 20 MB the measurement itself would be wrong


def rank_losses(rank, folder):
    """One of two ranks: its own images, the normalisers of both."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    case = random_case(rank, [[5, 2], [0, 1]][rank])
    losses = case.loss(case.tensors())
    torch.save(torch.stack(list(losses.values())).detach(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_normalisers_are_means_over_ranks(tmp_path):
    mp.spawn(rank_losses, args=(str(tmp_path),), nprocs=2)
    truths = [random_case(rank, boxes).truth() for rank, boxes in enumerate([[5, 2], [0, 1]])]
    pos_norm = max(1, (7 + 1) / 2)
    neg_norm = max(1, sum(truth.image_neg_counts.sum() for truth in truths) / 2)
    assert neg_norm > 1
    for rank, truth in enumerate(truths):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True).double()
        expected = torch.tensor(truth.image_sums.sum(0) / [pos_norm, pos_norm, neg_norm])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("boxes", "seed"), [([0, 0], 0), ([1], 4)])
def test_normalisers_are_at_least_one(boxes, seed):
    """Without boxes both counts are 0, so the losses are the sums."""
    case = random_case(seed, boxes)
    truth = case.truth()
    counts = np.array([sum(boxes), sum(boxes), truth.image_neg_counts.sum()])
    assert (counts <= 1).sum() >= 2
    got = torch.stack(list(case.loss(case.tensors()).values())).detach().double()
    torch.testing.assert_close(got, torch.tensor(truth.image_sums.sum(0) / counts.clip(1)), rtol=1e-5, atol=0)
