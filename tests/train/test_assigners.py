"""`loss.assigner`: training, resuming, evaluating and exporting a detector with each of the other assigners."""

import pytest
import torch

from dwtriton import export
from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.config.load import load_config
from dwtriton.losses import ATSSLoss, DualWeightAblationLoss, FCOSLoss, SimOTALoss, TaskAlignedLoss
from dwtriton.model.detector import build_detector
from dwtriton.model.postprocess import class_scores
from dwtriton.train.metrics import read_metrics
from dwtriton.train.signals import Interrupted
from dwtriton.train.trainer import Trainer

LOSSES = {"fcos": FCOSLoss, "atss": ATSSLoss, "simota": SimOTALoss, "tal": TaskAlignedLoss}
ALL_LOSSES = {**LOSSES, "dual_weight_ablation": DualWeightAblationLoss}
NAMES = {
    "fcos": {"loss_cls", "loss_bbox", "loss_centerness"},
    "atss": {"loss_cls", "loss_bbox", "loss_centerness"},
    "simota": {"loss_cls", "loss_bbox", "loss_obj"},
    "tal": {"loss_cls", "loss_bbox"},
    "dual_weight_ablation": {"loss_cls_pos", "loss_loc", "loss_cls_neg"},
}


@pytest.mark.parametrize("assigner", ALL_LOSSES)
def test_a_run_is_resumed_and_exported(assigner, tiny, tmp_path, console, call):
    cfg = tiny(f"loss.assigner={assigner}", "schedule.epochs=1")
    trainer = Trainer(cfg, tmp_path / "run", console)
    step = trainer.step

    def one_step(batches, epoch):
        step(batches, epoch)
        trainer.stop_requested = True

    trainer.step = one_step
    with pytest.raises(Interrupted):
        trainer.fit()
    evaluation = Trainer(cfg, tmp_path / "run", console, resume=True).fit()
    assert 0 <= evaluation.metrics["AP"] <= 1
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "step"]
    assert len(rows) == trainer.total
    assert NAMES[assigner] == {name for name in rows[0] if name.startswith("loss_")}
    assert load_checkpoint(tmp_path / "run" / "last.pt").config.loss.assigner == assigner
    if assigner != "fcos":  # one export takes as long as all four runs
        return
    out = tmp_path / "detector.pt2"
    code, _, error = call(export, "--weights", tmp_path / "run" / "last.pt", "--out", out, "--size", "64x64")
    assert code == 0, error


@pytest.mark.parametrize("assigner", LOSSES)
def test_configs_differ_in_the_assigner_alone(assigner):
    cfg, plain = load_config(f"{assigner}_r50_1x"), load_config("r50_1x")
    fields = {"loss": plain.loss, "description": "", "published_ap": None}
    assert cfg.model_copy(update=fields) == plain.model_copy(update=fields)
    assert cfg.loss == plain.loss.model_copy(update={"assigner": assigner})


def test_sections_reach_the_loss(tiny):
    cfg = tiny("loss.assigner=tal", "loss.tal.alpha=0.5", "loss.tal.topk=10")
    detector = build_detector(cfg)
    assert (detector.loss.alpha, detector.loss.topk) == (0.5, 10)
    assert not any(parameter.requires_grad for parameter in detector.head.objectness_conv.parameters())
    for assigner, loss in ALL_LOSSES.items():
        defaults = build_detector(tiny(f"loss.assigner={assigner}")).loss
        assert repr(defaults) == repr(loss())


def test_scores_are_those_that_the_method_trains():
    z, u = torch.tensor([[[[2.0]]]]), torch.tensor([[[[-1.0]]]])
    product = z.sigmoid() * u.sigmoid()
    assert class_scores(z, u, "product") == product
    assert class_scores(z, u, "root") == product.sqrt()
    assert class_scores(z, u, "class") == z.sigmoid()
    assert class_scores(z, None, "product") == class_scores(z, None, "root") == z.sigmoid()
