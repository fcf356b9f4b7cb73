"""The deformable convolution: against a loop in float64, its gradient, its initialisation, precision and layouts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dwtriton.model.deformable import DeformableConv2d


def random_layer(*args, **settings) -> DeformableConv2d:
    """A layer whose cells move by about one cell and whose masks differ."""
    torch.manual_seed(0)
    layer = DeformableConv2d(*args, **settings)
    fan_in = layer.in_channels * math.prod(layer.kernel_size)
    torch.nn.init.normal_(layer.conv_offset.weight, std=fan_in**-0.5)
    torch.nn.init.normal_(layer.conv_offset.bias, std=0.5)
    return layer


def images(channels: int, size: tuple[int, int] = (5, 6), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2, "bias": False},
    {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2), "groups": 2},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_are_those_of_a_loop_over_cells(sampled, geometry):
    layer = random_layer(4, 6, **geometry).double()
    x = images(4)
    rows, columns = layer.kernel_size
    cells = rows * columns
    raw, maps, weight = (t.detach().numpy() for t in (layer.conv_offset(x), x, layer.weight))
    expected = np.zeros((2, 6, *raw.shape[2:]))
    for b, i, j in np.ndindex(2, *raw.shape[2:]):
        for k in range(cells):
            row = i * layer.stride[0] - layer.padding[0] + k // columns * layer.dilation[0] + raw[b, 2 * k, i, j]
            column = j * layer.stride[1] - layer.padding[1] + k % columns * layer.dilation[1] + raw[b, 2 * k + 1, i, j]
            mask = 1 / (1 + math.exp(-raw[b, 2 * cells + k, i, j]))
            values = mask * np.array([sampled(channel, row, column) for channel in maps[b]])  # [4]
            for out in range(6):
                group = values.reshape(layer.groups, -1)[out * layer.groups // 6]
                expected[b, out, i, j] += weight[out, :, k // columns, k % columns] @ group
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
        expected += layer.bias.detach().numpy()[:, None, None]
    with torch.no_grad():
        double, single = layer(x).numpy(), layer.float()(x.float()).numpy()
    np.testing.assert_allclose(double, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_input_and_every_parameter(stride):
    layer = random_layer(2, 2, 3, padding=1, stride=stride, groups=2).double()
    names = [name for name, _ in layer.named_parameters()]
    assert names == ["weight", "bias", "conv_offset.weight", "conv_offset.bias"]

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(call, (images(2, (3, 4)).requires_grad_(), *layer.parameters()))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_fresh_layer_is_half_a_plain_convolution(geometry):
    layer = DeformableConv2d(4, 6, **geometry).double()
    x = images(4)
    plain = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    torch.testing.assert_close(layer(x), plain / 2, rtol=0, atol=1e-14)


def test_initialisation_and_geometry():
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(64, 96, 3, stride=2, padding=2, dilation=2, groups=4, bias=False)
    layer = DeformableConv2d.like(plain)
    assert layer(torch.zeros(1, 64, 9, 9)).shape == plain(torch.zeros(1, 64, 9, 9)).shape
    assert layer.weight.shape == plain.weight.shape
    assert layer.bias is None
    assert layer.conv_offset.weight.shape == (27, 64, 3, 3)
    bound = (16 * 9) ** -0.5
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert DeformableConv2d.like(torch.nn.Conv2d(2, 2, 3)).bias.eq(0).all()
    assert all((p == 0).all() for p in layer.conv_offset.parameters())
    torch.nn.init.ones_(layer.conv_offset.weight)
    layer.reset_parameters()
    assert layer.conv_offset.weight.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_but_the_dtype_of_the_output(dtype):
    layer = random_layer(4, 6, 3, padding=1)
    x = images(4, dtype=torch.float32).to(dtype)
    expected = layer(x.float())
    with torch.autocast("cpu", dtype):
        out = layer(x)
        assert torch.equal(layer(x.float()), expected)
    assert torch.equal(out, expected.to(dtype))
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_channels_last_gives_the_same_values_and_gradients():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = random_layer(4, 6, 3, padding=1, stride=2, groups=2).double().to(memory_format=layout)
        x = images(4).to(memory_format=layout).requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in layer.parameters())])
    for plain, strided in zip(*results, strict=True):
        torch.testing.assert_close(plain, strided, rtol=1e-12, atol=1e-12)


def test_compiles_as_one_graph_forward_and_backward_under_autocast():
    layer = random_layer(4, 6, 3, padding=1, stride=2, groups=2).to(memory_format=torch.channels_last)
    x = images(4, dtype=torch.float32).bfloat16().to(memory_format=torch.channels_last).requires_grad_()

    def gradients(function) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = function(x)
        return [out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])]

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(gradients(compiled), gradients(layer), strict=True):
        torch.testing.assert_close(ours, eager)
    torch._dynamo.reset()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_positions_that_are_no_numbers_or_far_away_are_never_read(bad):
    """torchvision's own kernel ends the process at a NaN position."""
    layer = random_layer(4, 6, 3, padding=1)
    torch.nn.init.constant_(layer.conv_offset.bias, bad)
    x = images(4, (6, 6), torch.float32).requires_grad_()
    out = layer(x)
    assert out.isnan().all() if math.isnan(bad) else out.eq(0).all()
    out.sum().backward()

    x = images(4, (6, 6), torch.float32)
    x[0, 0, 2, 2] = bad
    assert random_layer(4, 6, 3, padding=1)(x).isfinite().all() == (bad == 1e30)
