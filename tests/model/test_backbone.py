"""The backbone: what is frozen stays frozen, and pretrained weights load completely or not at all."""

import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from dwtriton.config.schema import BackboneConfig
from dwtriton.core.errors import UserError
from dwtriton.model.backbone import ResNet, load_backbone_weights
from dwtriton.model.deformable import DeformableConv2d


def backbone(**settings) -> ResNet:
    return ResNet(BackboneConfig(depth=18, weights="none", **settings))


def changed_by_a_step(network: nn.Module) -> set[str]:
    """Names of tensors that one training step with weight decay changes."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    sum(feature.square().mean() for feature in network.train()(torch.randn(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("frozen_statistics", [True, False])
@pytest.mark.parametrize("frozen_stages", [0, 1, 3])
def test_a_training_step_changes_exactly_what_is_not_frozen(frozen_stages, frozen_statistics):
    torch.manual_seed(0)
    network = backbone(frozen_stages=frozen_stages, frozen_statistics=frozen_statistics)
    frozen = tuple(
        ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"][: frozen_stages + 2 if frozen_stages else 0]
    )
    expected = {
        name
        for name in network.state_dict()
        if name.split(".")[0] not in frozen and not (frozen_statistics and is_statistic(name))
    }
    assert changed_by_a_step(network) == expected


def test_frozen_batch_norms_stay_in_evaluation_mode_whatever_the_mode():
    network = backbone(frozen_stages=2, frozen_statistics=False)
    for mode in (False, True):
        network.train(mode)
        training = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
        training = {name for name in training if network.get_submodule(name).training}
        assert bool(training) == mode
        assert all(name.startswith(("layer3", "layer4")) for name in training)


@pytest.mark.parametrize(
    ("depth", "resnext", "name"),
    [
        (18, "none", "resnet18"),
        (34, "none", "resnet34"),
        (50, "none", "resnet50"),
        (101, "none", "resnet101"),
        (50, "32x4d", "resnext50_32x4d"),
    ],
)
def test_features_are_those_of_torchvision(depth, resnext, name):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None).eval()
    network = ResNet(BackboneConfig(depth=depth, resnext=resnext, weights="none")).eval()
    network.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 64, 96)
    stages = {"layer2": "c3", "layer3": "c4", "layer4": "c5"}
    expected = {}
    for layer, name in stages.items():
        reference.get_submodule(layer).register_forward_hook(lambda m, i, out, name=name: expected.update({name: out}))
    with torch.no_grad():
        reference(images)
        features = network(images)
    assert list(features) == ["c3", "c4", "c5"]
    for (name, feature), channels, stride in zip(features.items(), network.out_channels, (8, 16, 32)):
        assert torch.equal(feature, expected[name])
        assert feature.shape == (1, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("resnext", ["none", "32x4d"])
def test_the_3x3_convolutions_of_the_last_three_stages_are_deformable(resnext):
    network = ResNet(BackboneConfig(depth=50, resnext=resnext, deformable=True, frozen_stages=2))
    deformable = {name for name, module in network.named_modules() if isinstance(module, DeformableConv2d)}
    blocks = {"layer2": 4, "layer3": 6, "layer4": 3}
    assert deformable == {f"{stage}.{i}.conv2" for stage, count in blocks.items() for i in range(count)}
    assert {name for name in deformable if network.get_submodule(name).stride == (2, 2)} == {
        f"{stage}.0.conv2" for stage in blocks
    }
    plain = ResNet(BackboneConfig(depth=50, resnext=resnext)).state_dict()
    state = network.state_dict()
    offsets = {name for name in state if ".conv_offset." in name}
    assert {name: value.shape for name, value in state.items() if name not in offsets} == {
        name: value.shape for name, value in plain.items()
    }
    assert offsets == {f"{name}.conv_offset.{kind}" for name in deformable for kind in ("weight", "bias")}
    assert all((state[name] == 0).all() for name in offsets)
    trained = {name for name, p in network.named_parameters() if p.requires_grad and name in offsets}
    assert trained == {name for name in offsets if not name.startswith("layer2")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 18, "deformable": True}, r"backbone\.deformable .* backbone\.depth = 18 .* 50 or 101"),
        ({"depth": 34, "deformable": True}, r"backbone\.deformable .* backbone\.depth = 34 .* 50 or 101"),
        ({"depth": 18, "resnext": "32x4d"}, r"backbone\.depth = 18 .*resnext101_64x4d, resnext50_32x4d"),
        ({"depth": 50, "resnext": "64x4d"}, r"backbone\.resnext = 64x4d .*resnext101_64x4d, resnext50_32x4d"),
    ],
)
def test_networks_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ResNet(BackboneConfig(**settings))


@pytest.fixture
def released(tmp_path):
    """A torchvision ResNet-18 state dict and the function that saves a change of it to a file."""
    torch.manual_seed(1)
    state = torchvision.models.resnet18(weights=None).state_dict()

    def save(change=lambda state: None) -> str:
        changed = dict(state)
        change(changed)
        torch.save(changed, tmp_path / "resnet18.pth")
        return str(tmp_path / "resnet18.pth")

    return state, save


def test_weights_file_is_loaded_whole_but_for_the_classifier(released):
    state, save = released
    network = backbone()
    load_backbone_weights(network, save())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    load_backbone_weights(network, save(lambda s: (s.pop("fc.weight"), s.pop("fc.bias"))))


def test_older_weights_files_have_no_batch_counters(released):
    """torchvision's own ResNet files among them, as listings of their tensors show."""
    state, save = released

    def drop_counters(changed):
        for name in list(changed):
            if name.endswith("num_batches_tracked"):
                del changed[name]

    network = backbone()
    load_backbone_weights(network, save(drop_counters))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_weights_file_that_does_not_fit_is_refused_naming_every_tensor(released):
    def spoil(state):
        del state["layer1.0.conv1.weight"], state["bn1.bias"]
        state["layer5.0.conv1.weight"] = torch.zeros(3)
        state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
        state["layer2.0.bn1.bias"] = "text"

    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_backbone_weights(network, released[1](spoil))
    text = str(error.value)
    for part in (
        "missing: layer1.0.conv1.weight (64, 64, 3, 3)",
        "missing: bn1.bias (64,)",
        "unexpected: layer5.0.conv1.weight (3,)",
        "wrong shape: conv1.weight is (64, 1, 7, 7), the model has (64, 3, 7, 7)",
        "layer2.0.bn1.bias is of type str",
        "5 tensors",
    ):
        assert part in text
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_of_another_depth_are_refused(released):
    with pytest.raises(UserError, match=r"resnet34.*\n.*missing: layer1\.2"):
        load_backbone_weights(ResNet(BackboneConfig(depth=34)), released[1]())


def test_weights_without_offsets_fill_a_deformable_network(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet50.pth")
    network = ResNet(BackboneConfig(depth=50, deformable=True))
    load_backbone_weights(network, str(tmp_path / "resnet50.pth"))
    for name, value in network.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if ".conv_offset." in name else state[name]), name

    offsets = {"layer2.0.conv2.conv_offset.bias": torch.ones(27)}
    torch.save(state | offsets, tmp_path / "resnet50.pth")
    load_backbone_weights(network, str(tmp_path / "resnet50.pth"))
    assert network.layer2[0].conv2.conv_offset.bias.eq(1).all()
    with pytest.raises(UserError, match=r"unexpected: layer2\.0\.conv2\.conv_offset\.bias"):
        load_backbone_weights(ResNet(BackboneConfig(depth=50)), str(tmp_path / "resnet50.pth"))
    del state["layer2.0.conv2.weight"]
    torch.save(state, tmp_path / "resnet50.pth")
    with pytest.raises(UserError, match=r"1 tensors.*\n.*missing: layer2\.0\.conv2\.weight"):
        load_backbone_weights(network, str(tmp_path / "resnet50.pth"))


def test_no_weights_leaves_the_initialisation():
    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_backbone_weights(network, "none")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_missing_and_unreadable_files_name_file_and_remedy(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth.*backbone\.weights=FILE"):
        load_backbone_weights(backbone(), str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match=r"text\.pth cannot be read"):
        load_backbone_weights(backbone(), str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth hold a list"):
        load_backbone_weights(backbone(), str(tmp_path / "list.pth"))


def test_pickled_code_in_a_weights_file_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    torch.save({"conv1.weight": Harm()}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone_weights(backbone(), str(tmp_path / "harmful.pth"))
    assert not (tmp_path / "harm").exists()


def test_imagenet_weights_come_through_torchvision_and_are_checked(released, monkeypatch):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    asked = {}
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **options: asked.update(options) or released[0])
    network = backbone()
    load_backbone_weights(network, "IMAGENET1K_V1")
    assert asked["check_hash"]
    assert asked["weights_only"]
    assert torch.equal(network.conv1.weight, released[0]["conv1.weight"])


@pytest.mark.parametrize(("depth", "resnext"), [(101, "none"), (50, "32x4d"), (101, "32x8d"), (101, "64x4d")])
def test_imagenet_weights_are_those_of_the_configured_network(depth, resnext, monkeypatch):
    def fail(url, *args, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with torch.device("meta"):
        network = ResNet(BackboneConfig(depth=depth, resnext=resnext))
    file = f"resnet{depth}" if resnext == "none" else f"resnext{depth}_{resnext}"
    with pytest.raises(UserError, match=rf"IMAGENET1K_V1 .*/{file}-[0-9a-f]{{8}}\.pth"):
        load_backbone_weights(network, "IMAGENET1K_V1")


def test_failed_download_names_the_file_and_the_remedies(monkeypatch):
    def fail(url, *args, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(UserError) as error:
        load_backbone_weights(backbone(), "IMAGENET1K_V1")
    for part in ("no route", "resnet18-f37072fd.pth", "checkpoints", "backbone.weights=FILE", "backbone.weights=none"):
        assert part in str(error.value)
