"""The detector as a whole: losses, detections, modes, layouts, compilation, bad input."""

import pytest
import torch
from torchvision.ops import box_iou

from dwtriton import DualWeightLoss, build_detector, pack_targets, postprocess

SIZE = (64, 96)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> list[dict[str, torch.Tensor]]:
    return [
        {"boxes": torch.tensor([[4.0, 4, 60, 50], [30, 10, 90, 60]]), "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


@pytest.fixture
def make(small_config):
    def build(**sections):
        torch.manual_seed(0)
        return build_detector(small_config(**sections))

    return build


@pytest.mark.parametrize("refine", [True, False])
def test_losses_are_those_of_the_head_outputs_times_their_factors(make, images, targets, refine):
    detector = make(
        head={"refine": refine},
        loss={"weight_cls_pos": 2.0, "weight_loc": 0.5, "weight_cls_neg": 3.0, "soft_prior": False},
    )
    detector.backbone.eval()
    losses = detector(images, targets)
    expected = DualWeightLoss(soft_prior=False)(*detector.head_outputs(images), targets)
    assert list(losses) == ["loss_cls_pos", "loss_loc", "loss_cls_neg"]
    for name, factor in zip(losses, (2.0, 0.5, 3.0)):
        assert losses[name].shape == ()
        torch.testing.assert_close(losses[name], expected[name] * factor, rtol=1e-6, atol=0)
        assert losses[name] > 0
    packed = detector(images, pack_targets(targets, "cpu"))
    assert all(torch.equal(packed[name], losses[name]) for name in losses)


def test_a_batch_is_overfitted_and_then_found(make, images, targets):
    detector = make(backbone={"frozen_stages": 0, "frozen_statistics": False}, head={"channels": 32, "refine": True})
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(detector(images, targets).values()).backward()
        optimizer.step()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # average over what follows: the statistics of this batch
            module.reset_running_stats()
    with torch.no_grad():
        detector(images, targets)

    found, empty = detector.predict(images, [SIZE, SIZE])
    for box, label in zip(targets[0]["boxes"], targets[0]["labels"]):
        of_class = found["labels"] == label
        assert found["scores"][of_class][0] > 0.5
        assert box_iou(found["boxes"][of_class][:1], box[None]) > 0.5
    assert not (empty["scores"] > 0.3).any()


def test_every_trainable_parameter_gets_a_gradient(make, images, targets):
    detector = make(head={"refine": True})
    sum(detector(images, targets).values()).backward()
    missing = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for p in detector.parameters() if not p.requires_grad)


def test_predict_is_postprocess_of_the_evaluation_outputs_with_the_configured_limits(make, images):
    limits = {"score_threshold": 0.001, "candidates_per_level": 30, "nms_iou": 0.5, "max_detections": 7}
    detector = make(inference=limits, backbone={"frozen_stages": 0, "frozen_statistics": False})
    sizes, scales = [(60, 90), (64, 50)], [(2.0, 2.0), (0.5, 0.6)]
    detector.train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    results = detector.predict(images, sizes, scales)
    assert detector.training
    assert detector.backbone.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())

    with torch.no_grad():
        outputs = detector.eval().head_outputs(images)
    expected = postprocess(*outputs, sizes, scales, **limits)
    assert not detector.predict(images, sizes, scales)[0]["boxes"].requires_grad
    assert not detector.training
    for result, truth in zip(results, expected):
        assert 0 < len(result["scores"]) <= 7
        assert all(torch.equal(result[name], truth[name]) for name in ("boxes", "scores", "labels"))


def test_mode_is_restored_when_predict_fails(make, images):
    detector = make().train()
    with pytest.raises(ValueError, match="multiples of 32"):
        detector.predict(images[..., :-1], [(64, 95)] * 2)
    assert detector.training


def test_evaluation_mode_gives_detections_without_and_losses_with_targets(make, images, targets):
    detector = make(inference={"score_threshold": 0.001}).eval()
    expected = detector.predict(images, [SIZE] * 2)
    for result, truth in zip(detector(images), expected):
        assert torch.equal(result["boxes"], truth["boxes"])
    assert set(detector(images, targets)) == {"loss_cls_pos", "loss_loc", "loss_cls_neg"}
    with pytest.raises(ValueError, match="needs targets"):
        detector.train()(images)


def test_channels_last_and_float64_give_the_same_numbers(make, images):
    plain = make(head={"refine": True}).double().eval()
    strided = make(head={"refine": True}).double().eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        a = plain.head_outputs(images.double())
        b = strided.head_outputs(images.double().to(memory_format=torch.channels_last))
    for ours, theirs in zip(a, b):
        for x, y in zip(ours, theirs):
            assert x.dtype == torch.float64
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("refine", [True, False])
def test_head_outputs_compile_as_one_graph(make, images, refine):
    detector = make(head={"refine": refine})
    compiled = torch.compile(detector.head_outputs, backend="eager", fullgraph=True)
    for ours, theirs in zip(detector.head_outputs(images), compiled(images)):
        for x, y in zip(ours, theirs):
            torch.testing.assert_close(x, y)
    torch._dynamo.reset()


def test_level_sizes_halve_and_round_up(make):
    cls_logits, distances, objectness = make().eval().head_outputs(torch.zeros(1, 3, 96, 160))
    sizes = [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    assert [tuple(x.shape) for x in cls_logits] == [(1, 3, *size) for size in sizes]
    assert [tuple(x.shape) for x in distances] == [(1, 4, *size) for size in sizes]
    assert [tuple(x.shape) for x in objectness] == [(1, 1, *size) for size in sizes]
    assert all((x >= 0).all() for x in distances)


def test_a_pyramid_from_stride_4_has_a_level_more_in_network_loss_and_detections(make, images, targets):
    detector = make(head={"finest_stride": 4})
    detector.backbone.eval()
    assert detector.strides == (4, 8, 16, 32, 64, 128)
    outputs = detector.head_outputs(images)
    assert [tuple(x.shape[2:]) for x in outputs[0]] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    losses, expected = detector(images, targets), DualWeightLoss(detector.strides)(*outputs, targets)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    sum(losses.values()).backward()
    assert detector.fpn.inner_blocks[0][0].weight.grad.abs().sum() > 0
    settings = {"score_threshold": 0.01, "nms_iou": 0.6, "max_detections": 50}
    for found, also in zip(
        detector.predict(images, [SIZE, SIZE], **settings),
        postprocess(*detector.eval().head_outputs(images), [SIZE, SIZE], strides=detector.strides, **settings),
    ):
        assert all(torch.equal(found[name], also[name]) for name in also)


@pytest.mark.parametrize("assigner", ["fcos", "atss", "simota", "tal", "dual_weight_ablation"])
def test_every_assigner_takes_a_pyramid_from_stride_4(assigner, make, images, targets):
    """An object of 6 pixels has points on the finest level alone."""
    detector = make(head={"finest_stride": 4}, loss={"assigner": assigner})
    small = [{"boxes": torch.tensor([[9.0, 9, 15, 15]]), "labels": torch.tensor([1])}, targets[1]]
    losses = detector(images, small)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert detector.fpn.layer_blocks[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 64, 64), r"\[B, 3, H, W\], got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"\[B, 3, H, W\], got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 65), "64 x 65, but both sides must be multiples of 32: pad"),
        (torch.zeros(1, 3, 0, 64), "0 x 64"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating point .* got torch.uint8"),
    ],
)
def test_unusable_images_are_refused_with_the_remedy(make, bad, message):
    with pytest.raises(ValueError, match=message):
        make().head_outputs(bad)


def test_image_sizes_must_lie_within_the_padded_batch(make, images):
    with pytest.raises(ValueError, match=r"image_sizes\[0\] = 96 x 64 is larger"):
        make().predict(images, [(96, 64)] * 2)
