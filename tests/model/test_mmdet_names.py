"""MMDetection's checkpoints: names, shapes and flags as released, both directions, nothing dropped."""

import re

import pytest
import torch
import torchvision

from dwtriton import build_detector, load_config
from dwtriton.config.load import flatten
from dwtriton.core.errors import UserError
from dwtriton.model.mmdet_names import RENAMED, mmdet_name
from tests.support.golden_cases import RELEASED

CONSTANTS = {"bbox_head.center_prior.mean", "bbox_head.center_prior.sigma"}  # parameters there, constants here


def detector_of(name: str):
    return build_detector(load_config(name, ["backbone.weights=none"]))


@pytest.mark.parametrize("name", RELEASED)
def test_tensors_are_those_of_the_released_model(released_names, name):
    released = released_names[name]
    entries = {entry["name"]: entry for entry in released["entries"]}
    detector = detector_of(name)
    exported = detector.mmdet_state_dict()
    assert len(exported) == released["num_entries"]
    assert exported.keys() == entries.keys()
    for key, tensor in exported.items():
        assert list(tensor.shape) == entries[key]["shape"], key
        assert str(tensor.dtype) == f"torch.{entries[key]['dtype']}", key

    parameters = {mmdet_name(key): p for key, p in detector.named_parameters()}
    assert parameters.keys() == {key for key, entry in entries.items() if entry["kind"] == "parameter"} - CONSTANTS
    assert {key: p.requires_grad for key, p in parameters.items()} == {
        key: entries[key]["requires_grad"] for key in parameters
    }
    assert {key for key, p in parameters.items() if not p.requires_grad} == set(released["frozen"]) - CONSTANTS
    trainable = [p.numel() for p in parameters.values() if p.requires_grad]
    assert len(trainable) == released["num_trainable_tensors"]
    assert sum(trainable) == released["num_trainable_parameters"]
    constants = sum(exported[key].numel() for key in CONSTANTS)
    assert sum(p.numel() for p in parameters.values()) + constants == released["num_parameters"]
    norms = [m for m in detector.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in norms if m.training] == released["batchnorm_in_train_mode_after_model_train"]


def meta_state(name: str) -> dict[str, torch.Size]:
    """Shapes of a config's detector under MMDetection's names, without its memory."""
    with torch.device("meta"):
        detector = build_detector(load_config(name))
    exported = {key: tensor.shape for key, tensor in detector.mmdet_state_dict().items()}
    assert len(exported) == len(detector.state_dict()) + len(CONSTANTS)
    return exported


def released_shapes(released) -> dict[str, torch.Size]:
    return {entry["name"]: torch.Size(entry["shape"]) for entry in released["entries"]}


def test_resnext_has_the_names_of_r101_and_the_grouped_shapes_of_torchvision(released_names):
    expected = released_shapes(released_names["r101_ms_2x"])
    with torch.device("meta"):
        network = torchvision.models.resnext101_64x4d(weights=None)
    backbone = {f"backbone.{key}": value.shape for key, value in network.state_dict().items() if "fc." not in key}
    assert backbone["backbone.layer2.0.conv2.weight"] == (512, 8, 3, 3)
    assert backbone.keys() < expected.keys()
    assert meta_state("x101_64x4d_ms_2x") == expected | backbone


def test_deformable_r101_is_r101_with_the_offsets_and_head_of_deformable_r50(released_names):
    r101, deformable = (released_shapes(released_names[name]) for name in ("r101_ms_2x", "r50_dcn_refine_ms_2x"))
    expected = r101 | {key: shape for key, shape in deformable.items() if key.startswith("bbox_head")}
    for key, shape in r101.items():
        if match := re.fullmatch(r"(backbone\.layer[234]\.\d+\.conv2)\.weight", key):
            expected[f"{match[1]}.conv_offset.weight"] = torch.Size([27, *shape[1:]])
            expected[f"{match[1]}.conv_offset.bias"] = torch.Size([27])
    assert meta_state("r101_dcn_refine_ms_2x") == expected


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("x101_64x4d_ms_2x", "r101_ms_2x", {"backbone.resnext": "64x4d"}),
        ("r101_dcn_refine_ms_2x", "r50_dcn_refine_ms_2x", {"backbone.depth": 101}),
    ],
)
def test_unreleased_configs_differ_from_a_released_one_by_the_backbone_alone(name, base, changes):
    cfg = load_config(name)
    assert "various backbones" in cfg.description
    changes = changes | {"description": cfg.description, "published_ap": None}
    assert flatten(cfg) == flatten(load_config(base)) | changes


@pytest.fixture
def detector(small_config):
    torch.manual_seed(0)
    return build_detector(small_config(head={"refine": True, "convs": 2}))


@pytest.mark.parametrize("deformable", [False, True])
def test_export_then_import_restores_every_bit(small_config, deformable):
    cfg = small_config(
        backbone={"depth": 50, "deformable": deformable}, head={"refine": True, "convs": 2, "deformable": deformable}
    )
    detector = build_detector(cfg)
    for parameter in detector.parameters():
        torch.nn.init.normal_(parameter)
    state = detector.mmdet_state_dict()
    assert len(set(state)) == len(detector.state_dict()) + len(CONSTANTS)
    assert torch.equal(state["bbox_head.center_prior.sigma"], torch.full((3, 2), 1.11))
    assert torch.equal(state["bbox_head.center_prior.mean"], torch.zeros(3, 2))
    other = build_detector(cfg)
    other.load_mmdet_state_dict(state)
    for name, value in other.state_dict().items():
        assert torch.equal(value, detector.state_dict()[name]), name


def test_every_rule_of_the_naming_is_used_once_for_a_name(detector):
    matches = {name: [pattern for pattern in RENAMED if re.fullmatch(pattern, name)] for name in detector.state_dict()}
    assert all(len(patterns) == 1 for patterns in matches.values())
    assert {patterns[0] for patterns in matches.values()} == set(RENAMED)
    with pytest.raises(KeyError, match=r"head\.other"):
        mmdet_name("head.other.weight")


def test_all_tensors_that_do_not_fit_are_listed_and_nothing_is_loaded(detector):
    state = {name: torch.zeros_like(value) for name, value in detector.mmdet_state_dict().items()}
    state["bbox_head.center_prior.sigma"] = torch.full((3, 2), 1.11)
    del state["neck.fpn_convs.4.conv.bias"], state["bbox_head.scales.2.scale"]
    state["bbox_head.conv_cls.weight"] = torch.zeros(80, 16, 3, 3)
    state["bbox_head.loss.weight"] = torch.zeros(2)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with pytest.raises(UserError) as error:
        detector.load_mmdet_state_dict(state)
    for part in (
        "missing: neck.fpn_convs.4.conv.bias (16,)",
        "missing: bbox_head.scales.2.scale ()",
        "wrong shape: bbox_head.conv_cls.weight is (80, 16, 3, 3), the model has (3, 16, 3, 3)",
        "unexpected: bbox_head.loss.weight (2,)",
        "4 tensors",
    ):
        assert part in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_another_centre_prior_is_refused(detector, name):
    state = detector.mmdet_state_dict()
    state[name] = state[name] + torch.tensor([[0.0, 0], [0, 1e-6], [0, 0]])
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(UserError, match=name):
        detector.load_mmdet_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_a_pyramid_that_no_release_has_is_refused():
    detector = build_detector(load_config("shapes", ["head.finest_stride=4"]))
    for use in (detector.mmdet_state_dict, lambda: detector.load_mmdet_state_dict({})):
        with pytest.raises(UserError, match=r"head\.finest_stride = 4 has no names in MMDetection's checkpoints"):
            use()
