"""The plain PyTorch form as operators: checked by opcheck, and one graph under torch.compile for any box counts."""

import pytest
import torch
from torch import nn

from dwtriton import DualWeightLoss, pack_targets
from dwtriton.reference import loss as reference
from tests.support.loss_cases import LAYOUTS, LOSSES, Unused, random_case

SIZES, STRIDES = ((4, 5), (2, 2)), (8, 16)


def small_case(boxes=(2, 1), seed=3):
    return random_case(seed, list(boxes), classes=3, sizes=SIZES, strides=STRIDES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("boxes", [(2, 1), (0, 0)], ids=["boxes", "no boxes"])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_the_operator_keeps_its_contract(layout, boxes, needs_grad):
    """Shapes and strides of its outputs among it, which torch.compile takes for granted."""
    case = small_case(boxes)
    levels = [[LAYOUTS[layout](level.detach()).requires_grad_(needs_grad) for level in kind] for kind in case.tensors()]
    packed = pack_targets(case.targets(), "cpu", capacity=4)
    torch.library.opcheck(reference.sums_operator, (*levels, *packed, [8.0, 16.0], True, needs_grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_operator_of_the_gradients_keeps_its_contract(dtype):
    case = small_case()
    levels = [[level.detach() for level in kind] for kind in case.tensors(dtype)]
    sums, _, saved = reference.sums_operator(*levels, *pack_targets(case.targets(), "cpu", 4), [8.0, 16.0], True, True)
    torch.library.opcheck(reference.gradients_operator, (torch.ones_like(sums), *levels, saved))


def test_sums_that_get_no_gradient_give_none():
    """As if what follows the loss returned no gradient."""
    case = small_case()
    inputs = case.tensors()
    sums, _ = case.sums(inputs)
    flat = [level for kind in inputs for level in kind]
    used = 2 * flat[0].sum()
    grads = torch.autograd.grad(Unused.apply(sums).sum() + used, flat, allow_unused=True)
    assert torch.equal(grads[0], torch.full_like(flat[0], 2))
    assert grads[1:] == (None,) * (len(flat) - 1)


class Head(nn.Module):
    """A small head and the loss, as a detector compiles them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.loss = DualWeightLoss(STRIDES)

    def forward(self, features, targets):
        outputs = [self.conv(level) for level in features]
        parts = [(out[:, :3], 10 * out[:, 3:7].exp(), out[:, 7:]) for out in outputs]
        return self.loss(*(list(kind) for kind in zip(*parts)), targets)


def run_head(head, forward, features, targets):
    head.zero_grad()
    losses = forward(features, targets)
    sum(losses.values()).backward()
    return torch.stack([losses[name].detach() for name in LOSSES]), head.conv.weight.grad.clone()


def test_head_and_loss_are_one_graph_for_any_numbers_of_boxes_and_empty_images():
    graphs = 0

    def counting(graph, inputs):
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    head = Head()
    compiled = torch.compile(head, fullgraph=True, backend=counting)
    features = [torch.randn(2, 4, *size) for size in SIZES]
    for boxes in [(2, 1), (0, 0), (1, 0), (4, 3), (0, 1), (1000, 0)]:
        targets = pack_targets(small_case(boxes).targets(), "cpu")
        expected = run_head(head, head, features, targets)
        for ours, eager in zip(run_head(head, compiled, features, targets), expected):
            assert torch.equal(ours, eager)
    assert graphs == 1
