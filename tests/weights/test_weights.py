"""`python -m dwtriton.weights`: every tensor accounted for, nothing changed on the way, nothing overwritten."""

import json
import zipfile
from functools import partial

import pytest
import torch
import torchvision

from dwtriton import build_detector, load_config
from dwtriton.checkpoints import checkpoint as checkpoints
from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dwtriton.model.mmdet_names import mmdet_name
from dwtriton.weights import __main__ as command

NAMES = ("zebra", "kite", "owl")
SMALL = ["backbone.depth=18", "head.num_classes=3", "head.channels=16", "head.convs=1", "head.groups=4"]
CFG = ["--cfg", "r50_1x", *(part for key in SMALL for part in ("--set", key))]
CONSTANTS = {"bbox_head.center_prior.mean", "bbox_head.center_prior.sigma"}


@pytest.fixture
def call(call):
    """Run an action of the command in this process; returns (exit code, standard output, standard error)."""
    return partial(call, command)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(load_config("r50_1x", SMALL))


@pytest.fixture
def state(detector):
    return {name: tensor.clone() for name, tensor in detector.mmdet_state_dict().items()}


@pytest.fixture
def classes(tmp_path):
    """A COCO JSON whose categories have gaps between their ids, and other positions than by id."""
    categories = [{"id": 7 + 13 * label, "name": name} for label, name in enumerate(NAMES)]
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories[::-1]}))
    return ["--classes", path]


def assert_holds(state, given):
    """`state` has our names and, bit for bit, the tensors `given` under MMDetection's."""
    assert {mmdet_name(name) for name in state} == given.keys() - CONSTANTS
    for name, tensor in state.items():
        assert torch.equal(tensor, given[mmdet_name(name)]), name


def test_a_file_of_mmdetection_becomes_a_checkpoint(detector, state, tmp_path, call):
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    momenta = {index: {"momentum_buffer": torch.zeros(2)} for index in range(80)}
    meta = {"epoch": 12, "iter": 87960, "CLASSES": NAMES}
    content = {"meta": meta, "state_dict": state, "optimizer": optimizer.state_dict() | {"state": momenta}}
    torch.save(content, tmp_path / "m.pth")
    code, printed, error = call("from-mmdet", tmp_path / "m.pth", *CFG, "--out", tmp_path / "new" / "ours.pt")
    assert code == 0, error
    checkpoint = load_checkpoint(tmp_path / "new" / "ours.pt")
    assert checkpoint.config == load_config("r50_1x", SMALL)
    assert (checkpoint.class_names, checkpoint.category_ids) == (list(NAMES), [1, 2, 3])
    assert (checkpoint.iteration, checkpoint.optimizer, checkpoint.ema) == (87960, None, None)
    assert_holds(checkpoint.model, state)
    assert "category ids are not in it and were numbered from 1" in printed
    assert f"converted: {len(state) - 2} tensors\n" in printed
    left_out = [line.split(":")[1].split(",")[0].strip() for line in printed.splitlines() if "left out:" in line]
    assert left_out == ["the 2 constants of the centre prior", "meta", "optimizer"]
    assert "optimizer, 80 tensors: " in printed


@pytest.mark.parametrize("average", [False, True])
def test_there_and_back_is_the_same_bit_for_bit(average, detector, classes, tmp_path, call):
    model = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    model["head.scales.0"] = torch.tensor(-0.0)
    model["fpn.inner_blocks.0.0.bias"][0] = torch.nan
    ema = {name: tensor + 1 for name, tensor in model.items()} if average else None
    cfg = load_config("r50_1x", SMALL)
    checkpoint = Checkpoint(cfg, list(NAMES), [7, 20, 33], 1234, model, optimizer={"state": {}}, ema=ema)
    save_checkpoint(tmp_path / "ours.pt", checkpoint)
    code, printed, _ = call("to-mmdet", tmp_path / "ours.pt", "--out", tmp_path / "m.pth")
    assert (code, "of the EMA, which" in printed) == (0, average)

    file = torch.load(tmp_path / "m.pth", weights_only=True)
    expected = {mmdet_name(name): tensor for name, tensor in checkpoint.weights.items()}
    assert file["state_dict"].keys() == expected.keys() | CONSTANTS
    assert_bits({name: file["state_dict"][name] for name in expected}, expected)
    assert (file["meta"]["CLASSES"], file["meta"]["iter"]) == (NAMES, 1234)

    code, _, _ = call("from-mmdet", tmp_path / "m.pth", *CFG, *classes, "--out", tmp_path / "back.pt")
    assert code == 0
    back = load_checkpoint(tmp_path / "back.pt")
    assert back._replace(model={}, ema=None) == checkpoint._replace(model={}, ema=None, optimizer=None)
    assert_bits(back.model, checkpoint.weights)


def assert_bits(first, second):
    """Equal in every bit: NaN is NaN and -0 is not 0."""
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name


def broken(change, state):
    """The content of a file with one thing wrong, and what the error must say."""
    content = {"meta": {"CLASSES": NAMES}, "state_dict": state}
    match change:
        case "names and shapes":
            del state["bbox_head.scales.2.scale"], state["neck.fpn_convs.4.conv.bias"]
            state |= {
                "bbox_head.loss": torch.zeros(2),
                "x": torch.zeros(2),
                "bbox_head.conv_reg.bias": torch.ones(5),
            }
            return content, (
                "with names and shapes of no shipped config",
                "missing: bbox_head.scales.2.scale ()",
                "missing: neck.fpn_convs.4.conv.bias (16,)",
                "unexpected: bbox_head.loss (2,)",
                "unexpected: x (2,)",
                "wrong shape: bbox_head.conv_reg.bias is (5,), the model has (4,)",
            )
        case "half precision":
            halves = {name: tensor.half() for name, tensor in state.items() if tensor.is_floating_point()}
            content["state_dict"] = state | halves
            return content, [f"{name} is torch.float16, not torch.float32" for name in halves]
        case "centre prior":
            state["bbox_head.center_prior.sigma"] += 0.5
            return content, ["bbox_head.center_prior.sigma is not 1.11"]
        case "class channels":
            state["bbox_head.conv_cls.weight"] = torch.zeros(20, 16, 3, 3)
            return content, ["detects 20 classes, but head.num_classes of r50_1x is 3: add --set head.num_classes=20"]
        case "class names":
            content["meta"]["CLASSES"] = (*NAMES, "crow")
            return content, ["are 4, but head.num_classes is 3"]
        case "no class names":
            return {"state_dict": state}, ["taken to be COCO's", "are 80, but head.num_classes is 3", "--classes FILE"]
        case "EMA":
            state["ema_bbox_head_scales_2_scale"] = torch.zeros(())
            return content, [
                "m.pth holds two sets of weights, from an EMA hook (1 tensors such as ema_bbox_head_scales"
            ]
        case "critic":
            return content | {"critic": torch.zeros(1)}, ["m.pth has unknown parts", "critic: 1 tensors"]


@pytest.mark.parametrize(
    "change",
    [
        "names and shapes",
        "half precision",
        "centre prior",
        "class channels",
        "class names",
        "no class names",
        "EMA",
        "critic",
    ],
)
def test_whatever_is_wrong_with_a_file_is_one_error_and_nothing_is_written(change, state, tmp_path, call):
    content, messages = broken(change, state)
    torch.save(content, tmp_path / "m.pth")
    code, _, error = call("from-mmdet", tmp_path / "m.pth", *CFG, "--out", tmp_path / "ours.pt")
    assert code == 2
    assert error.startswith("error: ")
    assert all(message in error for message in messages)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_the_config_that_a_file_fits_is_named(tmp_path, call):
    state = build_detector(load_config("shapes")).mmdet_state_dict()
    torch.save({"meta": {"CLASSES": list("abcdefgh")}, "state_dict": state}, tmp_path / "m.pth")
    setting = ["--cfg", "shapes", "--set", "head.channels=32"]
    code, _, error = call("from-mmdet", tmp_path / "m.pth", *setting, "--out", tmp_path / "ours.pt")
    assert code == 2
    assert (
        "m.pth, with names and shapes of --cfg shapes or --cfg small: the MMDetection state dict does not fit the model"
        in error
    )


def test_classes_of_coco_have_its_category_ids(tmp_path, call):
    coco = command.coco_categories()
    assert (len(coco), coco[1], coco[13], coco[90]) == (80, "person", "stop sign", "toothbrush")
    assert 12 not in coco
    state = build_detector(load_config("r50_1x", [*SMALL, "head.num_classes=80"])).mmdet_state_dict()
    convert = ["from-mmdet", tmp_path / "m.pth", *CFG, "--set", "head.num_classes=80", "--out", tmp_path / "ours.pt"]
    for meta, told in (({"CLASSES": tuple(coco.values())}, "80, COCO\n"), ({}, "taken to be COCO's")):
        torch.save({"meta": meta, "state_dict": state}, tmp_path / "m.pth")
        code, printed, _ = call(*convert, "--force")
        assert (code, told in printed) == (0, True)
        checkpoint = load_checkpoint(tmp_path / "ours.pt")
        assert (checkpoint.class_names, checkpoint.category_ids) == (list(coco.values()), list(coco))


def test_classes_must_not_contradict_the_file(state, classes, tmp_path, call):
    torch.save({"meta": {"CLASSES": NAMES[::-1]}, "state_dict": state}, tmp_path / "m.pth")
    code, _, error = call("from-mmdet", tmp_path / "m.pth", *CFG, *classes, "--out", tmp_path / "ours.pt")
    assert code == 2
    assert "the checkpoint's classes are ['owl', 'kite', 'zebra'], those of" in error


def test_nothing_is_overwritten_unless_asked(detector, state, classes, tmp_path, call, monkeypatch):
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    out = tmp_path / "ours.pt"
    out.write_bytes(b"precious")
    convert = ["from-mmdet", tmp_path / "m.pth", *CFG, *classes, "--out", out]
    code, _, error = call(*convert)
    assert (code, out.read_bytes()) == (2, b"precious")
    assert "already exists: add --force" in error

    def interrupted(content, path):
        path.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", interrupted)
        assert call(*convert, "--force")[0] == 130
    assert out.read_bytes() == b"precious"
    assert call(*convert, "--force")[0] == 0
    assert_holds(load_checkpoint(out).model, state)
    code, _, error = call("to-mmdet", out, "--out", tmp_path, "--force")
    assert (code, "is a folder" in error) == (2, True)


def test_from_torchvision_is_where_a_run_with_that_backbone_begins(classes, tmp_path, call):
    weights = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    setting = [*CFG, "--set", "train.seed=5", *classes, "--out", tmp_path / "ours.pt"]
    code, printed, _ = call("from-torchvision", tmp_path / "resnet18.pth", *setting)
    assert (code, "backbone: 120 tensors" in printed) == (0, True)
    assert "left out: fc.weight, fc.bias (the classifier)\n" in printed
    assert "so fresh too" not in printed
    checkpoint = load_checkpoint(tmp_path / "ours.pt")
    torch.manual_seed(5)
    fresh = build_detector(checkpoint.config).state_dict()
    expected = fresh | {f"backbone.{name}": tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    assert_bits(checkpoint.model, expected)
    assert (checkpoint.iteration, checkpoint.optimizer, checkpoint.ema) == (0, None, None)
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet18.pth")
    code, _, error = call("from-torchvision", tmp_path / "resnet18.pth", *setting, "--force")
    assert (code, "missing: layer1.0.conv1.weight" in error) == (2, True)


def test_from_torchvision_tells_what_the_file_did_not_give(classes, tmp_path, call):
    """Counters are missing from older files, offsets from all; half precision is not what was trained."""
    weights = torchvision.models.resnet50(weights=None).state_dict()
    older = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "resnet50.pth")
    setting = [*CFG, "--set", "backbone.depth=50", "--set", "backbone.deformable=true", *classes]
    convert = ["from-torchvision", tmp_path / "resnet50.pth", *setting, "--out", tmp_path / "ours.pt"]
    code, printed, error = call(*convert)
    assert code == 0, error
    assert f"backbone: {len(older) - 2} tensors of " in printed
    assert "not in the file, so fresh too: bn1.num_batches_tracked, " in printed
    own = build_detector(load_checkpoint(tmp_path / "ours.pt").config).backbone.state_dict()
    assert f" and {len(own) - (len(older) - 2) - 12} more\n" in printed
    torch.save(older | {"conv1.weight": older["conv1.weight"].half()}, tmp_path / "resnet50.pth")
    code, _, error = call(*convert, "--force")
    assert (code, "wrong dtype: conv1.weight is torch.float16, not torch.float32" in error) == (2, True)


def test_files_that_are_not_there_are_named(state, tmp_path, call):
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    convert = ["from-mmdet", tmp_path / "m.pth", *CFG, "--out", tmp_path / "ours.pt"]
    code, _, error = call(*convert, "--classes", tmp_path / "none.json")
    assert (code, "none.json: cannot be read: No such file" in error) == (2, True)
    code, _, error = call("from-torchvision", tmp_path / "none.pth", *CFG, "--out", tmp_path / "ours.pt")
    assert (code, error) == (2, f"error: {tmp_path / 'none.pth'} does not exist\n")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 1}, "x.pt is damaged or of a newer version; missing: ['category_ids', "),
        ({"state_dict": {"layer1.0.conv1.weight": torch.zeros(1)}}, "neither a checkpoint of this package"),
    ],
)
def test_files_of_another_kind_are_one_clear_error(content, message, tmp_path, call):
    torch.save(content, tmp_path / "x.pt")
    code, _, error = call("show", tmp_path / "x.pt")
    assert (code, message in error) == (2, True), error


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.pt", b"", "empty"),
        ("x.onnx", b"\x08\x0a\x12\x07pytorch", "an ONNX file, "),
        ("x.safetensors", (2).to_bytes(8, "little") + b"{}", "a safetensors file; `dwtriton.weights from-safetensors`"),
        ("x.pt2", ("x/archive_format", "x/models/model.json"), "a file of torch.export, "),
        ("x.pt", ("x/data.pkl", "x/constants.pkl", "x/code/x.py"), "a TorchScript file, "),
        ("x.zip", ("photos/a.jpg",), "a zip archive that torch.save did not write"),
    ],
)
@pytest.mark.parametrize("action", ["from-mmdet", "to-mmdet"])
def test_a_file_that_torch_did_not_save_is_called_what_it_is(action, name, content, kind, tmp_path, call):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for part in content:
                archive.writestr(part, "x")
    options = CFG if action == "from-mmdet" else []
    code, _, error = call(action, tmp_path / name, *options, "--out", tmp_path / "ours.pt")
    assert (code, error.count("\n")) == (2, 1)
    assert f"{name} cannot be read: it is {kind}" in error


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"layer1.0.conv1.weight": torch.zeros(1)}, "weights of a ResNet"),
        ({"transformer.weight": torch.zeros(1)}, "a state dict of another network"),
        ({"model": {}, "epoch": 3}, "a file of another kind that holds model, epoch"),
    ],
)
def test_a_checkpoint_of_others_is_called_what_it_is(content, kind, tmp_path, call):
    torch.save(content, tmp_path / "x.pt")
    for action, options, wanted in (
        ("from-mmdet", CFG, "an MMDetection checkpoint"),
        ("to-safetensors", [], "`python"),
    ):
        code, _, error = call(action, tmp_path / "x.pt", *options, "--out", tmp_path / "y.pt")
        assert code == 2
        assert f"x.pt is not {wanted}" in error.replace("a checkpoint of ", "")
        assert f", but {kind}" in error


def test_records_of_a_file_that_are_no_records_are_left_out(state, classes, tmp_path, call):
    torch.save({"state_dict": state, "meta": "by hand", "ema_state_dict": {}}, tmp_path / "m.pth")
    code, printed, error = call("from-mmdet", tmp_path / "m.pth", *CFG, *classes, "--out", tmp_path / "ours.pt")
    assert code == 0, error
    assert "left out: ema_state_dict, " in printed
    assert load_checkpoint(tmp_path / "ours.pt").ema is None


@pytest.mark.parametrize("action", [[], ["show"], ["from-mmdet"], ["to-mmdet"], ["from-torchvision"]])
def test_help_has_examples(action, call):
    code, printed, _ = call(*action, "--help")
    assert code == 0
    assert f"examples:\n  python -m dwtriton.weights {' '.join(action)}" in printed
    assert "exit codes:" in printed


def test_show_prints_the_facts_and_the_parts(state, tmp_path, call):
    torch.save(state, tmp_path / "m.pth")
    code, printed, _ = call("show", tmp_path / "m.pth")
    assert code == 0
    for text in ("checkpoint of MMDetection", "3: without names", "backbone", "pyramid", "head", "float32, int64"):
        assert text in printed
    code, _, error = call("show", tmp_path / "none.pth")
    assert (code, "none.pth does not exist" in error) == (2, True)
