"""Group norm and ReLU as tensor operations, which GPUs take, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwtriton.model.group_norm import GroupNormReLU, NormReLU

EPS = 1e-5
CASES = {  # shape, groups
    "groups": ((2, 12, 5, 7), 3),
    "one group": ((1, 6, 4, 3), 1),
    "one channel a group": ((3, 4, 6, 2), 4),
    "one cell": ((2, 8, 1, 1), 2),
}


def inputs(shape: tuple[int, ...], offset: float = 0.0) -> list[Tensor]:
    """x, weight, bias and the gradient of the result in float64; x in channels_last, around `offset`."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=generator, dtype=torch.float64) for _ in range(2))
    return [(x + offset).to(memory_format=torch.channels_last), weight, bias, grad]


def results(function, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """The result, and the gradients of x, weight and bias."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def truth(groups: int):
    return lambda x, weight, bias: F.relu(F.group_norm(x, groups, weight, bias, EPS))


def ours(groups: int):
    return lambda x, weight, bias: NormReLU.apply(x, weight, bias, groups, EPS)


@pytest.mark.parametrize(("shape", "groups"), CASES.values(), ids=CASES)
def test_in_float64_it_is_group_norm_and_relu(shape, groups):
    given = inputs(shape)
    for actual, expected in zip(results(ours(groups), *given), results(truth(groups), *given)):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inside_it_is_float32(dtype, offset):
    check_accuracy(ours(4), torch.device("cpu"), dtype, offset)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_on_a_gpu_it_is_as_accurate(dtype):
    check_accuracy(torch.compile(ours(4), fullgraph=True), torch.device("cuda"), dtype, offset=30.0)


def check_accuracy(function, device: torch.device, dtype: torch.dtype, offset: float) -> None:
    """Off from float64 on the rounded inputs by one rounding of the result and float32's own error, entry by entry."""
    x, weight, bias, grad = (tensor.to(device) for tensor in inputs((2, 16, 20, 30), offset))
    x, grad, weight, bias = x.to(dtype), grad.to(dtype), weight.float(), bias.float()
    actual = results(function, x, weight, bias, grad)
    expected = results(truth(4), x.double(), weight.double(), bias.double(), grad.double())
    assert [part.dtype for part in actual] == [dtype, dtype, torch.float32, torch.float32]
    assert actual[0].stride() == actual[1].stride() == x.stride()
    for found, true in zip(actual, expected):
        rounding = torch.finfo(found.dtype).eps / 2 * true.abs()
        arithmetic = 16 * (1 + offset) * torch.finfo(torch.float32).eps * true.abs().max()
        assert ((found.double() - true).abs() <= rounding + arithmetic).all()


def test_contiguous_memory_stays_contiguous():
    x, weight, bias, grad = (tensor.contiguous() for tensor in inputs((2, 12, 5, 7)))
    y, grad_x, *_ = results(ours(3), x, weight, bias, grad)
    assert y.is_contiguous()
    assert grad_x.is_contiguous()


def test_on_a_cpu_the_module_is_pytorchs_group_norm_and_relu():
    x, weight, bias, _ = (tensor.float() for tensor in inputs((2, 12, 5, 7)))
    norm = GroupNormReLU(3, 12)
    norm.load_state_dict({"weight": weight, "bias": bias})
    assert torch.equal(norm(x), F.relu(F.group_norm(x, 3, weight, bias)))


def test_second_derivatives_are_refused():
    x, weight, bias, _ = inputs((1, 6, 4, 3))
    (first,) = torch.autograd.grad(ours(3)(x.requires_grad_(), weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_towers_give_the_gradients_of_eager_ones(dtype):
    """Two convolutions, shared by two levels; with the result in the dtype of the arithmetic and in another."""
    torch.manual_seed(0)
    convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)).to(dtype)
    norms = nn.ModuleList(nn.GroupNorm(4, 8) for _ in range(2))
    levels = [torch.randn(2, 8, *size, dtype=dtype).to(memory_format=torch.channels_last) for size in ((6, 9), (3, 5))]

    def loss() -> Tensor:
        total = 0
        for x in levels:
            for conv, norm in zip(convs, norms):
                x = NormReLU.apply(conv(x), norm.weight, norm.bias, 4, EPS)
            total = total + x.float().square().sum()
        return total

    parameters = [*convs.parameters(), *norms.parameters()]
    expected = torch.autograd.grad(loss(), parameters)
    actual = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(), parameters)
    assert all(grad.abs().max() > 0 for grad in expected)
    for found, true in zip(actual, expected):
        torch.testing.assert_close(found, true, rtol=0, atol=4 * torch.finfo(dtype).eps * true.abs().max().item())
