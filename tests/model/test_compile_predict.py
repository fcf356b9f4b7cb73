"""The detector under torch.compile: whole graphs, as many as there should be, and the results of eager mode."""

import re
from functools import partial

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from dwtriton import build_detector, pack_targets
from dwtriton.config.schema import DataConfig
from dwtriton.model import pixels
from dwtriton.model.detector import DualWeightDetector
from dwtriton.model.pixels import PixelDetector, compile_predict

LIMITS = {"score_threshold": 0.001, "candidates_per_level": 10}  # fewer than the coarsest level has


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def boxes_of(counts):
    """Targets with so many boxes in each image."""
    random = torch.Generator().manual_seed(sum(counts))
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random) * 40
        labels = torch.randint(3, (count,), generator=random)
        targets.append({"boxes": torch.cat([corner, corner + 4 + torch.rand(count, 2) * 40], 1), "labels": labels})
    return targets


@pytest.mark.parametrize(
    ("backend", "sections"),
    [
        ("aot_eager", {"head": {"refine": True}}),
        ("eager", {"backbone": {"depth": 50, "deformable": True}, "head": {"refine": True, "deformable": True}}),
        ("eager", {"train": {"activation_checkpointing": True}, "head": {"convs": 2}}),
        ("eager", {"backbone": {"frozen_stages": 0, "frozen_statistics": False}}),
    ],
    ids=["refined", "deformable", "recomputed", "norms that train"],
)
def test_training_is_one_graph_for_any_numbers_of_boxes_and_empty_images(backend, sections, small_config):
    """From normalised images to losses; without a capacity, as a user compiles it."""
    torch.manual_seed(0)
    detector = build_detector(small_config(**sections)).train()
    network = torch.compile(detector, fullgraph=True, dynamic=False, backend=backend)
    images = torch.randn(2, 3, 64, 96)
    for counts in [(2, 1), (0, 0), (1, 0), (0, 7), (1000, 3)]:
        targets = pack_targets(boxes_of(counts), "cpu")
        losses = network(images, targets)
        sum(losses.values()).backward()
        for name, loss in detector(images, targets).items():
            torch.testing.assert_close(losses[name], loss, rtol=1e-6, atol=0)
    assert graphs() == 1
    assert_targets_are_guarded_by_type_alone(images=2)


def assert_targets_are_guarded_by_type_alone(images):
    """Of the one graph: nothing depends on how many boxes there are, nor on any value of theirs."""
    [entry] = _debug_get_cache_entry_list(DualWeightDetector.forward.__code__)
    guards = re.findall(r"\+- (\w+): ([^#\n]*L\['targets'\][^#\n]*)", str(entry.guard_manager))
    tensors = [guard for kind, guard in guards if kind == "TENSOR_MATCH"]
    sizes = [re.search(r"\.(\w+), Tensor,.* size=(\[.*?\])", guard).groups() for guard in tensors]
    assert sorted(sizes) == [
        ("boxes", "[None, 4]"),
        ("iscrowd", "[None]"),
        ("labels", "[None]"),
        ("offsets", f"[{images + 1}]"),
    ]
    assert [guard.strip() for kind, guard in guards if kind == "NONE_MATCH"] == ["L['targets'].weights is None"]
    others = {kind for kind, _ in guards} - {"TENSOR_MATCH", "NONE_MATCH", "LAMBDA_GUARD", "GuardManager"}
    marks = "DIMENSION_DYNAMIC_MARKING_GUARD"  # of torch 2.14: how dimensions are marked, not how long they are
    assert others <= {"TYPE_MATCH", "LENGTH_CHECK", "NO_HASATTR", "NO_TENSOR_ALIASING", "ID_MATCH", marks}
    assert {guard.strip() for kind, guard in guards if kind == "LAMBDA_GUARD"} == {
        "0 <= L['targets'].boxes.size()[0]",
        "L['targets'].labels.size()[0] == L['targets'].boxes.size()[0]",
        "L['targets'].iscrowd.size()[0] == L['targets'].boxes.size()[0]",
    }


@pytest.fixture
def traced(monkeypatch):
    """Spares the code generation."""
    monkeypatch.setattr(pixels.torch, "compile", partial(torch.compile, backend="eager"))


def test_compiled_detections_are_those_of_eager_mode_for_any_size_from_few_graphs(traced, small_config):
    torch.manual_seed(0)
    network = PixelDetector(build_detector(small_config(head={"refine": True}, inference=LIMITS)).train(), DataConfig())
    predict = compile_predict(network)
    for batch, height, width in [(2, 256, 320), (2, 320, 256), (3, 192, 416), (1, 320, 416), (1, 384, 352)]:
        images = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
        sizes, scales = [(height - 7, width - 3)] * batch, [(2.0, 1.5)] * batch
        for ours, eager in zip(predict(images, sizes, scales), network.predict(images, sizes, scales), strict=True):
            assert all(torch.equal(ours[name], value) for name, value in eager.items())
            assert len(ours["scores"])
    assert graphs() <= 3  # batches of one image, of several, and so small that a CPU takes another convolution
    assert network.detector.training


def test_compiled_detections_follow_the_weights(traced, small_config):
    network = PixelDetector(build_detector(small_config(inference=LIMITS)), DataConfig())
    predict = compile_predict(network)
    images, sizes = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8), [(64, 96)] * 2
    before = predict(images, sizes)
    with torch.no_grad():
        network.detector.head.class_conv.bias += 1
    after = predict(images, sizes)
    assert after[0]["scores"][0] > before[0]["scores"][0] + 0.01
    assert torch.equal(after[0]["scores"], network.predict(images, sizes)[0]["scores"])
    assert graphs() == 1


def test_off_is_eager_mode(small_config):
    network = PixelDetector(build_detector(small_config()), DataConfig())
    assert compile_predict(network, "off") == network.predict


@pytest.mark.slow
def test_generated_code_detects_as_accurately_as_eager_mode(small_config):
    torch.manual_seed(0)
    detector = build_detector(small_config(head={"refine": True}, inference=LIMITS)).eval()
    for tower in (detector.head.class_conv, detector.head.objectness_conv):
        torch.nn.init.normal_(tower.weight, std=0.5)  # scores far apart: no ties that rounding could decide
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        candidates = torch.compile(detector.candidates, fullgraph=True, dynamic=True)(images)
        eager = detector.candidates(images)
        truth = build_detector(small_config(head={"refine": True}, inference=LIMITS)).double().eval()
        truth.load_state_dict(detector.state_dict())
        exact = truth.candidates(images.double())
    same = (candidates.labels == exact.labels) & (eager.labels == exact.labels)
    assert same.float().mean() > 0.99
    for name in ("boxes", "scores"):
        ours, theirs, true = (getattr(found, name)[same] for found in (candidates, eager, exact))
        allowed = max(2 * (theirs - true).abs().max(), 1e-5 * true.abs().max())
        assert (ours - true).abs().max() <= allowed, name
