"""The commands as a person meets them: results, help, and one clear line for everything that is wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.config.load import config_names, dump_config, override_config
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.train import __main__ as train_command
from dwtriton.train.metrics import read_metrics


def test_list_prints_every_config_with_its_published_ap(call):
    code, printed, _ = call(train_command, "--cfg", "list")
    assert code == 0
    assert all(name in printed for name in config_names())
    assert "41.5" in printed
    assert "not yet reproduced" in printed


@pytest.mark.parametrize("module", [train_command, evaluate_command])
def test_help_has_examples(module, call):
    code, printed, _ = call(module, "--help")
    assert code == 0
    assert "examples:" in printed
    assert "exit codes:" in printed


def test_training_ends_with_the_coco_table_and_names_the_pictures(tiny, tmp_path, call):
    (tmp_path / "tiny.toml").write_text(dump_config(tiny("schedule.epochs=1")))
    code, printed, _ = call(train_command, "--cfg", tmp_path / "tiny.toml", "--out", tmp_path / "run")
    assert code == 0
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in printed
    for name in ("predictions.png", "curves.png", "last.pt"):
        assert name in printed
        assert (tmp_path / "run" / name).exists()
    assert f"look closer: python -m dwtriton.evaluate --weights {tmp_path}/run/best.pt" in printed.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--cfg is missing"),
        (["--cfg", "r50_2x"], "did you mean 'r50_1x'?"),
        (["--cfg", "shapes", "--set", "optimizer.rl=1"], "unknown key 'optimizer.rl'; did you mean 'optimizer.lr'?"),
        (["--cfg", "r50_1x"], "pass --data DIR"),
        (["--cfg", "r50_1x", "--data", "nowhere"], "annotations/instances_train2017.json"),
        (["--resume"], "--resume needs --out"),
        (["--cfg", "shapes", "--data-changed"], "--data-changed belongs to --resume"),
        (["--resume", "--out", "nowhere"], "last.pt does not exist"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(train_command, *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_never_overwritten(finished, tiny, tmp_path, call):
    out, _ = finished
    before = (out / "metrics.jsonl").read_text()
    (tmp_path / "tiny.toml").write_text(dump_config(tiny()))
    code, _, error = call(train_command, "--cfg", tmp_path / "tiny.toml", "--out", out)
    assert code == 2
    assert "already holds a run: add --resume" in error
    assert (out / "metrics.jsonl").read_text() == before


def test_evaluate_gives_the_figures_of_the_run_and_coco_results(finished, shapes_root, tmp_path, call):
    out, _ = finished
    code, printed, _ = call(evaluate_command, "--weights", out / "last.pt", "--out", tmp_path / "results")
    assert code == 0
    assert "Average Recall" in printed
    truth = COCO(shapes_root / "annotations" / "val.json")
    assert all(category["name"] in printed for category in truth.cats.values())
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    last = read_metrics(out / "metrics.jsonl")[-1]
    assert metrics == {key: value for key, value in last.items() if key not in ("kind", "iteration", "epoch")}
    results = json.loads((tmp_path / "results" / "detections.json").read_text())
    assert {result["category_id"] for result in results} <= set(truth.cats)
    assert {result["image_id"] for result in results} <= set(truth.imgs)
    truth.loadRes(results)


def test_evaluate_explains_bad_input(finished, tmp_path, call):
    out, _ = finished
    code, _, error = call(evaluate_command, "--weights", tmp_path / "none.pt")
    assert (code, "none.pt does not exist" in error) == (2, True)
    (tmp_path / "file").touch()
    code, _, error = call(evaluate_command, "--weights", out / "last.pt", "--out", tmp_path / "file" / "results")
    assert (code, "cannot be made" in error) == (2, True)
    (tmp_path / "other.txt").touch()
    code, _, error = call(evaluate_command, "--weights", out / "last.pt", "--data", tmp_path)
    assert (code, "Expected:" in error) == (2, True)
    mmdet = {"state_dict": {"bbox_head.conv_cls.bias": torch.zeros(8)}, "meta": {"best": np.float64(0.4)}}
    torch.save(mmdet, tmp_path / "m.pth")
    code, _, error = call(evaluate_command, "--weights", tmp_path / "m.pth")
    assert (code, f"weights from-mmdet {tmp_path / 'm.pth'} --cfg NAME --out OUT.pt" in error) == (2, True)
    other = load_checkpoint(out / "last.pt")
    save_checkpoint(tmp_path / "other.pt", other._replace(class_names=[f"other {n}" for n in other.class_names]))
    code, _, error = call(evaluate_command, "--weights", tmp_path / "other.pt")
    assert (code, "has none of the classes other " in error) == (2, True)
    code, _, error = call(evaluate_command, "--weights", out / "last.pt", "--set", "head.channels=32")
    assert (code, "head.class_conv.weight" in error) == (2, True)


def test_evaluate_matches_classes_by_name(finished, tmp_path, call):
    """A detector of the same classes in another order gives the same figures; one less is not counted, and said."""
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    order = list(range(len(checkpoint.class_names)))[::-1]
    keys = ("head.class_conv.weight", "head.class_conv.bias")

    def metrics(chosen):
        moved = {key: checkpoint.model[key][chosen] for key in keys}
        names = [checkpoint.class_names[label] for label in chosen]
        ids = [checkpoint.category_ids[label] for label in chosen]
        cfg = override_config(checkpoint.config, [f"head.num_classes={len(chosen)}"])
        changed = checkpoint._replace(model=checkpoint.model | moved, class_names=names, category_ids=ids, config=cfg)
        save_checkpoint(tmp_path / "moved.pt", changed)
        out = tmp_path / "evaluation"
        code, printed, error = call(evaluate_command, "--weights", tmp_path / "moved.pt", "--out", out, "--force")
        assert (code, error) == (0, "")
        return json.loads((out / "metrics.json").read_text()), printed

    same, _ = metrics(order[::-1])
    turned, printed = metrics(order)
    assert "classes have another order in" in printed
    assert turned["AP"] == pytest.approx(same["AP"], abs=1e-6)
    assert turned["class_ap"] == pytest.approx(same["class_ap"], abs=1e-6)
    fewer, printed = metrics(order[:-1])
    assert "x object of a category that the detector does not know, not counted" in printed
    assert fewer["class_ap"].keys() == same["class_ap"].keys() - {checkpoint.class_names[0]}


def test_importing_the_package_and_the_loss_is_light():
    """Neither Triton nor anything that only data, configs and pictures need may be loaded with the loss."""
    code = (
        "import sys, dwtriton\n"
        "from dwtriton import DualWeightLoss\n"
        "heavy = {'triton', 'pycocotools', 'pydantic', 'matplotlib', 'torchvision', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
