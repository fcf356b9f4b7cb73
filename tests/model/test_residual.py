"""Batch norms folded into convolutions: the same function as without, and where it is done."""

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from dwtriton.config.schema import BackboneConfig
from dwtriton.model.backbone import ResNet
from dwtriton.model.deformable import DeformableConv2d
from dwtriton.model.residual import conv_norm


def randomise(network: nn.Module) -> nn.Module:
    """Give batch norms the statistics and factors of a trained network, roughly."""
    generator = torch.Generator().manual_seed(1)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, mean, std in ((norm.weight, 1, 0.3), (norm.bias, 0, 0.3), (norm.running_mean, 0, 0.5)):
                nn.init.normal_(tensor, mean, std, generator=generator)
            nn.init.uniform_(norm.running_var, 0.3, 3, generator=generator)
    return network


@pytest.fixture(scope="module", params=[18, 50])
def network(request) -> ResNet:
    """A backbone of one block a stage in float64, channels_last."""
    torch.manual_seed(0)
    network = ResNet(BackboneConfig(depth=request.param, weights="none"))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(network, stage, getattr(network, stage)[:1])
    return randomise(network).double().to(memory_format=torch.channels_last)


def gradients(network: nn.Module, dtype: torch.dtype, folded: bool) -> dict[str, Tensor]:
    """Outputs, and gradients of all trainable parameters, in float64; computed under autocast for bfloat16.

    Autocast leaves float64 as it is.
    """
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 128, 128, generator=generator).to(torch.float32 if dtype == torch.bfloat16 else dtype)
    network.to(images.dtype).zero_grad()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16 or folded),
        mock.patch.object(torch.compiler, "is_compiling", return_value=folded),
    ):
        outputs = network(images.to(memory_format=torch.channels_last))
    ups = {name: torch.randn(output.shape, generator=generator) for name, output in outputs.items()}
    sum((output * ups[name]).sum() for name, output in outputs.items()).backward()
    found = {name: p.grad.double() for name, p in network.named_parameters() if p.requires_grad}
    return {name: output.detach().double() for name, output in outputs.items()} | found


def test_in_float64_folded_and_plain_agree(network):
    plain, folded = (gradients(network, torch.float64, folded) for folded in (False, True))
    assert any(not torch.equal(value, folded[name]) for name, value in plain.items())  # folded indeed
    for name, expected in plain.items():
        torch.testing.assert_close(folded[name], expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())


def test_in_bfloat16_gradients_are_as_accurate_folded_as_plain(network):
    """Those of factors, biases and weights, off from float64 by at most twice as much, in root mean square."""
    truth = gradients(network, torch.float64, folded=False)
    errors = [
        {name: (value - truth[name]).norm() for name, value in gradients(network, torch.bfloat16, folded).items()}
        for folded in (False, True)
    ]
    for name, plain in errors[0].items():
        assert errors[1][name] <= 2 * plain, name


def convolution(kind: type[nn.Conv2d] = nn.Conv2d) -> tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]:
    torch.manual_seed(0)
    norm = randomise(nn.Sequential(nn.BatchNorm2d(6)))[0].eval()
    return kind(4, 6, 3, padding=1, bias=False), norm, torch.randn(2, 4, 5, 7)


@pytest.mark.parametrize(("compiling", "half"), [(False, True), (True, False)], ids=["eager", "float32"])
def test_eager_and_in_float32_nothing_is_folded(compiling, half):
    conv, norm, x = convolution()
    patched = mock.patch.object(torch.compiler, "is_compiling", return_value=compiling)
    with torch.autocast("cpu", torch.bfloat16, enabled=half), patched:
        assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))


def test_norms_that_train_their_statistics_and_deformable_convolutions_are_not_folded():
    conv, norm, x = convolution(DeformableConv2d)
    training = nn.BatchNorm2d(6)
    with (
        torch.autocast("cpu", torch.bfloat16),
        mock.patch.object(torch.compiler, "is_compiling", return_value=True),
    ):
        assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
        conv_norm(convolution()[0], training, x)
    assert training.num_batches_tracked == 1


@pytest.mark.parametrize("half", [True, False])
def test_torch_compile_folds_in_half_precision_only(half):
    conv, norm, x = convolution()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph.code)
        return graph.forward

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        torch.compile(conv_norm, backend=backend, fullgraph=True)(conv, norm, x)
    assert ("batch_norm" in graphs[0]) != half
