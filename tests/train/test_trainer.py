"""A whole run: what it writes, how it is resumed, and what happens when it goes wrong."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import matplotlib.image
import numpy as np
import pytest
import torch
import torchvision
from rich.console import Console

from dwtriton.checkpoints import checkpoint as checkpoints
from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.config.load import dump_config, load_config, override_config
from dwtriton.core.errors import UserError, WriteError
from dwtriton.data.prepare import prepare_data
from dwtriton.train.finite import NonFiniteLossError
from dwtriton.train.metrics import read_metrics
from dwtriton.train.signals import Interrupted
from dwtriton.train.trainer import Trainer

PER_EPOCH = {"max": 8, "min": 6}  # 24 images in batches of 4 and two orientations


def run(cfg, out, console, resume=False):
    return Trainer(cfg, out, console, resume)


def stop_after(trainer, iteration):
    """Ask the run to stop once it has done `iteration` steps, as a signal would."""
    step = trainer.step

    def stopping_step(batches, epoch):
        step(batches, epoch)
        trainer.stop_requested = trainer.iteration == iteration

    trainer.step = stopping_step


def assert_same_state(first, second):
    """Bit for bit equal, through nested dicts and lists."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_state(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second):
            assert_same_state(a, b)
    else:
        assert first == second


def test_a_run_folder_holds_everything_promised(finished, tiny):
    out, printed = finished
    assert load_config(out / "config.toml") == tiny()
    rows = read_metrics(out / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["iteration"] for row in steps] == list(range(1, len(steps) + 1))
    assert PER_EPOCH["min"] * 2 <= len(steps) <= PER_EPOCH["max"] * 2
    assert [row["epoch"] for row in evaluations] == [1, 2]
    for row in steps:
        terms = row["loss_cls_pos"] + row["loss_loc"] + row["loss_cls_neg"]
        assert row["loss"] == pytest.approx(terms, rel=1e-6)
    assert steps[-1]["loss"] < steps[0]["loss"]
    for name in ("curves.png", "predictions.png"):
        picture = matplotlib.image.imread(out / name)
        assert min(picture.shape[:2]) > 300
        assert np.ptp(picture[..., :3]) > 0.5
    assert load_checkpoint(out / "last.pt").iteration == len(steps)
    assert load_checkpoint(out / "best.pt").iteration in [row["iteration"] for row in evaluations]
    assert not list(out.glob(".*"))
    for text in ("images/s", "data wait", "ETA", "cls_pos", "AP50"):
        assert text in printed


@pytest.mark.parametrize("stop", [3, 9])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(stop, finished, tiny, tmp_path, console):
    whole, _ = finished
    interrupted = run(tiny(), tmp_path / "run", console)
    stop_after(interrupted, stop)
    with pytest.raises(Interrupted):
        interrupted.fit()
    assert load_checkpoint(tmp_path / "run" / "last.pt").iteration == stop
    (tmp_path / "run" / "metrics.jsonl").open("a").write('{"kind": "step", "iterat')  # cut off by a crash

    run(tiny(), tmp_path / "run", console, resume=True).fit()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")
    first, second = (load_checkpoint(folder / "last.pt") for folder in (whole, tmp_path / "run"))
    assert_same_state(first.model, second.model)
    assert_same_state(first.optimizer, second.optimizer)


def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(finished, tiny, tmp_path, console):
    run(tiny("data.workers=2", "schedule.epochs=2"), tmp_path / "run", console).fit()
    first, second = (load_checkpoint(folder / "last.pt") for folder in (finished[0], tmp_path / "run"))
    assert_same_state(first.model, second.model)


def test_resuming_a_finished_run_changes_nothing(finished, tiny, console):
    out, _ = finished
    metrics, last = (out / "metrics.jsonl").read_text(), (out / "last.pt").read_bytes()
    trainer = run(tiny(), out, console, resume=True)
    assert f"nothing is trained. To train on, begin another run from it: --cfg CONFIG --weights {out}/last.pt" in (
        trainer.summary()
    )
    result = trainer.fit()
    assert (out / "metrics.jsonl").read_text() == metrics
    assert (out / "last.pt").read_bytes() == last
    assert result.metrics["AP"] == json.loads(metrics.splitlines()[-1])["AP"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_can_be_resumed(number, tiny, tmp_path):
    (tmp_path / "tiny.toml").write_text(dump_config(tiny("schedule.epochs=500", "data.workers=1")))
    command = [
        sys.executable,
        "-m",
        "dwtriton.train",
        "--cfg",
        str(tmp_path / "tiny.toml"),
        "--out",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (metrics.exists() and len(read_metrics(metrics)) > 3):
            time.sleep(0.1)
        # Ctrl-C reaches the loader's workers too, a cluster's SIGTERM is sent to the process it started
        os.killpg(process.pid, number) if number == signal.SIGINT else process.terminate()
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume --out" in printed
    steps = [row for row in read_metrics(metrics) if row["kind"] == "step"]
    assert load_checkpoint(tmp_path / "run" / "last.pt").iteration == len(steps) >= 3


def test_a_non_finite_loss_names_term_and_images_and_keeps_the_last_good_checkpoint(tiny, tmp_path, console):
    trainer = run(tiny("train.checkpoint_every=1"), tmp_path / "run", console)
    step = trainer.step
    seen = {}

    def poisoning_step(batches, epoch):
        if trainer.iteration == 4:
            torch.nn.init.constant_(trainer.detector.head.class_conv.bias, float("nan"))
            seen["ids"] = batches[0].image_ids
        step(batches, epoch)

    trainer.step = poisoning_step
    with pytest.raises(NonFiniteLossError) as error:
        trainer.fit()
    assert "loss_cls_neg is nan" in str(error.value)
    assert "at iteration 5," in str(error.value)
    for image_id in seen["ids"]:
        assert f"{image_id} (" in str(error.value)
    good = load_checkpoint(tmp_path / "run" / "last.pt")
    assert good.iteration == 4
    assert all(tensor.isfinite().all() for tensor in good.model.values())


def test_weights_that_an_update_made_non_finite_are_never_saved(tiny, tmp_path, console):
    """The loss of the last step before a checkpoint is still finite; only its gradient was not."""
    trainer = run(tiny("train.checkpoint_every=1"), tmp_path / "run", console)
    settings = {"loss": 0}

    def poison(gradient):
        settings["loss"] += 1
        return gradient * torch.inf if settings["loss"] == 4 else gradient

    trainer.detector.head.box_conv.weight.register_hook(poison)
    with pytest.raises(
        NonFiniteLossError, match=r"head\.box_conv\.weight is not finite after its update at iteration 4"
    ):
        trainer.fit()
    good = load_checkpoint(tmp_path / "run" / "last.pt")
    assert good.iteration == 3
    assert all(tensor.isfinite().all() for tensor in good.model.values())


def test_weights_that_were_not_finite_from_the_start_are_never_saved(tiny, tmp_path, console):
    """As when a run that starts from a bad checkpoint is stopped while it compiles."""
    trainer = run(tiny(), tmp_path / "run", console)
    torch.nn.init.constant_(trainer.detector.head.class_conv.bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"head\.class_conv\.bias is not finite before any step: look at "):
        trainer.save()
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_run_that_saved_nothing_can_begin_again(tiny, tmp_path, console):
    trainer = run(tiny(), tmp_path / "run", console)
    trainer.detector.head.class_conv.bias.data.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="there was no checkpoint yet"):
        trainer.fit()
    run(tiny(), tmp_path / "run", console).fit()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["iteration"] for row in rows if row["kind"] == "step"] == list(range(1, trainer.total + 1))


def test_a_stop_during_evaluation_is_heard_and_the_evaluation_made_up_for(finished, tiny, tmp_path, console):
    trainer = run(tiny(), tmp_path / "run", console)
    evaluate = trainer.evaluate

    seen = []

    def stop(_module, inputs):
        seen.append(len(inputs[0]))
        trainer.stop_requested = True

    def stopped_evaluate():
        trainer.detector.backbone.register_forward_pre_hook(stop)
        return evaluate()

    trainer.evaluate = stopped_evaluate
    assert len(trainer.val_loader) > 1
    with pytest.raises(Interrupted):
        trainer.fit()
    assert len(seen) == 1  # the batch in which it was asked to
    run(tiny(), tmp_path / "run", console, resume=True).fit()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == read_metrics(finished[0] / "metrics.jsonl")


def test_an_interrupted_write_leaves_the_old_checkpoint(finished, tmp_path, monkeypatch):
    good = load_checkpoint(finished[0] / "last.pt")
    save_checkpoint(tmp_path / "last.pt", good)

    def half_save(state, path):
        path.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints.torch, "save", half_save)
    with pytest.raises(WriteError, match=r"last\.pt cannot be written: disk full"):
        save_checkpoint(tmp_path / "last.pt", good._replace(iteration=99))
    assert load_checkpoint(tmp_path / "last.pt").iteration == good.iteration


def test_checkpoints_that_do_not_fit_say_why(finished, tiny, tmp_path, console):
    out, _ = finished
    with pytest.raises(UserError, match=r"optimizer\.lr was 0\.\d+ and is 0\.5\b"):
        run(tiny("optimizer.lr=0.5"), out, console, resume=True)
    with pytest.raises(UserError, match=r"last\.pt does not exist"):
        run(tiny(), tmp_path, console, resume=True)
    (tmp_path / "last.pt").write_bytes((out / "last.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        run(tiny(), tmp_path, console, resume=True)
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        run(tiny(), tmp_path, console, resume=True)
    torch.save({"model": {}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="is not a checkpoint of"):
        run(tiny(), tmp_path, console, resume=True)


def change_annotations(root, split, change):
    """Copy the data of a run and change the content of a split's annotations."""
    path = root / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    path.write_text(json.dumps(content))


def test_a_run_is_not_resumed_on_changed_data_unless_asked_to(shapes_root, finished, tiny, tmp_path, console):
    out, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished[0], out)
    shutil.copytree(shapes_root, data)  # moved, and the same
    run(override_config(tiny(), data_root=data), out, console, resume=True)

    def move_a_box(content):
        content["annotations"][0]["bbox"][0] += 1

    change_annotations(data, "train", move_a_box)
    change_annotations(data, "val", lambda content: content["annotations"].pop())
    before = (out / "last.pt").read_bytes()
    with pytest.raises(UserError) as error:
        run(override_config(tiny(), data_root=data), out, console, resume=True)
    assert re.search(r"training data changed: \d+ boxes as before, but not the same\. ", str(error.value))
    fewer = re.search(r"validation data changed: (\d+) boxes, were (\d+)", str(error.value))
    assert int(fewer[1]) == int(fewer[2]) - 1
    assert "--resume --data-changed" in str(error.value)
    assert (out / "last.pt").read_bytes() == before
    trainer = Trainer(override_config(tiny(), data_root=data), out, console, resume=True, data_changed=True)
    assert fewer[0] in trainer.summary().splitlines()
    trainer.save()
    Trainer(override_config(tiny(), data_root=data), out, console, resume=True)  # it knows the data now

    def keep_half(content):
        content["images"] = content["images"][:12]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]

    change_annotations(data, "train", keep_half)
    with pytest.raises(UserError, match=r"has done \d+ iterations, and on the changed data the whole run has \d+"):
        Trainer(override_config(tiny(), data_root=data), out, console, resume=True, data_changed=True)


def test_a_checkpoint_that_does_not_know_its_data_is_resumed(finished, tiny, tmp_path, console):
    """Those of earlier versions have no fingerprint."""
    save_checkpoint(tmp_path / "last.pt", load_checkpoint(finished[0] / "last.pt")._replace(data=None))
    assert run(tiny(), tmp_path, console, resume=True).iteration > 0


def test_loss_factors_multiply_the_losses_of_the_run(finished, tiny, tmp_path, console):
    trainer = run(
        tiny("loss.weight_loc=2.0", "loss.weight_cls_neg=0.5", "loss.weight_cls_pos=0.0"), tmp_path / "run", console
    )
    stop_after(trainer, 1)
    with pytest.raises(Interrupted):
        trainer.fit()
    plain, weighted = (read_metrics(folder / "metrics.jsonl")[0] for folder in (finished[0], tmp_path / "run"))
    for name, factor in (("loss_loc", 2.0), ("loss_cls_neg", 0.5), ("loss_cls_pos", 0.0)):
        assert weighted[name] == pytest.approx(factor * plain[name], rel=1e-6)


def test_crowd_ignore_hands_crowd_regions_to_the_loss(tiny, tmp_path):
    """The data set passes crowd boxes, marked, only when the config asks for it."""
    crowds = {}
    for setting in ("background", "ignore"):
        cfg = tiny(f"data.crowd={setting}", "data.shapes.train_images=100")
        data, _ = prepare_data(override_config(cfg, data_root=tmp_path / "shapes"))
        crowds[setting] = sum(int(data[i].target.get("iscrowd", torch.zeros(0)).sum()) for i in range(len(data)))
    assert crowds["background"] == 0
    assert crowds["ignore"] > 0


def test_live_display_on_a_terminal(tiny, tmp_path):
    """On 80 columns nothing that it promises is cut off."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, legacy_windows=False)
    trainer = run(tiny("schedule.epochs=1"), tmp_path / "run", console)
    trainer.fit()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    frames = [line for line in re.split(r"[\r\n]", shown) if "ETA" in line]
    assert any(re.search(rf"epoch 1 ━+.* \d/{trainer.total} ETA \d:\d\d:\d\d", frame) for frame in frames)
    assert re.search(r"loss \S+  cls_pos \S+  loc \S+  cls_neg \S+  \S+ images/s  data wait \d+%", shown)
    assert re.search(rf"evaluating.* \d/{len(trainer.val_loader)}", shown)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_broken_image_is_named_once_and_the_run_goes_on(split, shapes_root, finished, tiny, tmp_path, console):
    shutil.copytree(shapes_root, tmp_path / "shapes")
    victim = min((tmp_path / "shapes" / split).iterdir())  # in val the first is one of predictions.png
    victim.write_bytes(victim.read_bytes()[:2000])
    trainer = run(override_config(tiny(), data_root=tmp_path / "shapes"), tmp_path / "run", console)
    trainer.fit()
    assert trainer.iteration == trainer.total
    assert [line.split(":")[0] for line in trainer.broken] == [str(victim)]
    assert (tmp_path / "run" / "predictions.png").exists()
    assert trainer.left_out() == 1 + trainer.train_set.problems.left_out + trainer.val_set.problems.left_out
    assert console.file.getvalue().count(str(victim)) == 1


def test_the_published_recipe_trains_from_a_weights_file_on_other_data(shapes_root, finished, tmp_path, console):
    """`r50_1x` as it is but for image size, batch and names: frozen parts stay as in the file, the rest moves."""
    torch.manual_seed(0)
    weights = torchvision.models.resnet50(weights=None).state_dict()
    for name in weights:  # untrained branches whose statistics are not their own would blow up over 16 blocks
        if name.endswith("bn3.weight"):
            weights[name] *= 0.2
    torch.save(weights, tmp_path / "resnet50.pth")
    splits = [f"data.{s}_{kind}={name}" for s in ("train", "val") for kind, name in split_names(s)]
    small = [
        "data.short_side=[64, 64]",
        "data.long_side=96",
        "data.batch_size=2",
        "data.workers=0",
        "schedule.warmup_iterations=0",
    ]
    file = f"backbone.weights={tmp_path / 'resnet50.pth'}"
    cfg = load_config("r50_1x", [*splits, *small, file, "head.num_classes=8"], data_root=shapes_root)
    trainer = run(cfg, tmp_path / "run", console)
    stop_after(trainer, 3)
    with pytest.raises(Interrupted):
        trainer.fit()
    state = load_checkpoint(tmp_path / "run" / "last.pt").model
    changed = {
        name for name in weights if not name.startswith("fc.") and not weights[name].equal(state[f"backbone.{name}"])
    }
    trained = {name for name in weights if name.startswith(("layer2", "layer3", "layer4")) and is_parameter(name)}
    assert changed == trained
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["lr"] == 0.01 * 2 / 16


def split_names(split):
    return ("images", split), ("annotations", f"annotations/{split}.json")


def is_parameter(name):
    return name.endswith((".weight", ".bias"))
