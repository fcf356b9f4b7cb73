"""Config files, overrides, and the errors for everything that does not exist."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from dwtriton.config.load import check_config, config_names, dump_config, flatten, load_config, override_config
from dwtriton.config.renames import RENAMED, upgrade_keys
from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from tests.support.golden_cases import RELEASED

GOLDEN = Path(__file__).parents[1] / "golden"
RECIPE = json.loads((GOLDEN / "recipe.json").read_text())


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_loads_and_survives_a_round_trip(name, tmp_path):
    cfg = load_config(name)
    (tmp_path / "copy.toml").write_text(dump_config(cfg))
    assert load_config(tmp_path / "copy.toml") == cfg


@pytest.mark.parametrize("name", RELEASED)
def test_recipe_of_released_configs(name):
    cfg, released = load_config(name), RECIPE[name]
    pipeline = {step["type"]: step for step in released["train_pipeline"]}
    scales = pipeline["Resize"]["img_scale"]
    scales = scales if isinstance(scales[0], list) else [scales]
    assert (cfg.schedule.epochs, list(cfg.schedule.milestones)) == (
        released["max_epochs"],
        released["lr_config"]["step"],
    )
    assert cfg.schedule.warmup_iterations == released["lr_config"]["warmup_iters"]
    assert cfg.schedule.warmup_start == released["lr_config"]["warmup_ratio"]
    assert cfg.data.short_side == (scales[0][1], scales[-1][1])
    assert cfg.data.long_side == scales[0][0]
    assert cfg.data.flip == pipeline["RandomFlip"]["flip_ratio"]
    assert (list(cfg.data.mean), list(cfg.data.std)) == (pipeline["Normalize"]["mean"], pipeline["Normalize"]["std"])
    assert cfg.data.size_divisor == pipeline["Pad"]["size_divisor"]
    test = released["test_cfg"]
    assert cfg.inference.model_dump(exclude={"short_side", "long_side", "compile"}) == {
        "score_threshold": test["score_thr"],
        "candidates_per_level": test["nms_pre"],
        "nms_iou": test["nms"]["iou_threshold"],
        "max_detections": test["max_per_img"],
    }


def test_overrides_are_toml_or_plain_strings():
    cfg = load_config("r50_1x", ["optimizer.lr=0.5", "data.short_side=[480, 960]", "backbone.weights=some/file.pth"])
    assert (cfg.optimizer.lr, cfg.data.short_side, cfg.backbone.weights) == (0.5, (480, 960), "some/file.pth")
    assert override_config(cfg, ["head.refine=true"], Path("here")).data.root == Path("here")


def test_class_weights_are_merged_by_name_whatever_the_names(tmp_path):
    (tmp_path / "rare.toml").write_text(
        'base = "r50_1x"\n[data.class_weights]\nrare = 2\n"traffic light" = 0.5\n"no. 1" = 0'
    )
    cfg = load_config(tmp_path / "rare.toml", ["data.class_weights={rare=3.0, common=1e-3}"])
    assert cfg.data.class_weights == {"rare": 3.0, "traffic light": 0.5, "no. 1": 0.0, "common": 0.001}
    cfg = override_config(cfg, ["data.class_weights.traffic light=4"])
    assert cfg.data.class_weights["traffic light"] == 4
    stored = dump_config(cfg)
    assert check_config(upgrade_keys(tomllib.loads(stored)), "checkpoint") == cfg
    (tmp_path / "copy.toml").write_text(stored)
    assert load_config(tmp_path / "copy.toml") == cfg
    assert flatten(cfg, fixed_only=True)["data.class_weights"] == cfg.data.class_weights


def test_a_file_holds_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "first.toml").write_text('base = "r50_refine_1x"\n[optimizer]\nlr = 0.02\n')
    (tmp_path / "second.toml").write_text('base = "first.toml"\n[schedule]\nepochs = 3\n')
    cfg = load_config(tmp_path / "second.toml")
    expected = flatten(load_config("r50_refine_1x")) | {"optimizer.lr": 0.02, "schedule.epochs": 3}
    assert flatten(cfg) == expected | {"published_ap": None}  # which is of the base alone


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("r50x", [], r"there is no config 'r50x'; did you mean 'r50_1x'\?"),
        ("missing.toml", [], r"missing\.toml does not exist"),
        ("r50_1x", ["optimizer.learning_rate=1"], r"unknown key 'optimizer\.learning_rate'"),
        ("r50_1x", ["optimzer.lr=1"], r"unknown key 'optimzer'; did you mean 'optimizer\.lr'\?"),
        ("r50_1x", ["lr=1"], r"unknown key 'lr'; did you mean 'optimizer\.lr'\?"),
        ("r50_1x", ["train.batch_size=2"], r"unknown key 'train\.batch_size'; did you mean 'data\.batch_size'\?"),
        ("r50_1x", ["schedule.epochs=0"], r"schedule\.epochs = 0: input should be greater than 0"),
        ("r50_1x", ["data.short_side=[90, 60]"], r"data\.short_side = \[90, 60\]: .*the lowest comes first"),
        ("r50_1x", ["data.size_divisor=48"], r"data\.size_divisor = 48: input should be a multiple of 32"),
        ("r50_1x", ["backbone.depth=42"], r"backbone\.depth = 42: input should be 18, 34, 50 or 101"),
        ("r50_1x", ["data.class_weights.a=-1"], r"class_weights\.a = -1: .*greater than or equal to 0"),
        ("r50_1x", ["data.class_weights={a=nan}"], r"class_weights\.a = nan: input should be a finite number"),
        ("r50_1x", ["data.class_weights={a=inf}"], r"class_weights\.a = inf: input should be"),
        ("r50_1x", ["data.class_weights={a=1e39}"], r"class_weights\.a = 1e\+39: .*less than or equal to"),
        ("r50_1x", ["data.class_weights={a=true}"], r"class_weights\.a = True: input should be a valid number"),
        ("r50_1x", ["data.class_weights={a='2'}"], r"class_weights\.a = '2': input should be a valid number"),
        ("r50_1x", ["data.class_weights=2"], r"data\.class_weights = 2: input should be a valid dictionary"),
        ("r50_1x", ["data.class_weight={a=2}"], r"'data\.class_weight'; did you mean 'data\.class_weights'\?"),
        ("r50_1x", ["optimizer.lr"], r"'optimizer\.lr' is not of the form section\.key=value"),
        ("r50_1x", ["optimizer.lr.x=1"], r"optimizer\.lr = \{'x': 1\}: input should be a valid number"),
        ("r50_1x", ["data=5"], r"data = 5: it is a section, whose keys are set as data\.KEY"),
        ("r50_1x", ["data.shapes=1"], r"data\.shapes = 1: it is a section"),
        ("r50_1x", ["optimizer.lr=inf"], r"optimizer\.lr = inf: input should be a finite number"),
        ("r50_1x", ["optimizer.weight_decay=inf"], r"weight_decay = inf: input should be a finite number"),
        ("r50_1x", ["loss.weight_loc=nan"], r"loss\.weight_loc = nan: input should be a finite number"),
        ("r50_1x", ["data.mean=[nan, 0, 0]"], r"data\.mean\.0 = nan: input should be a finite number"),
        ("r50_1x", ["data.std=[1, inf, 1]"], r"data\.std\.1 = inf: input should be a finite number"),
        ("r50_1x", ["head.channels=true"], r"head\.channels = True: input should be a valid integer"),
        ("r50_1x", ["head.channels='64'"], r"head\.channels = '64': input should be a valid integer"),
        ("r50_1x", ["head.channels=99999"], r"head\.channels = 99999: input should be less than or equal to 4096"),
        ("r50_1x", ["data.batch_size=999999999999"], r"data\.batch_size = 999999999999: .* less than or equal to"),
        (
            "r50_1x",
            ["data.workers=100000"],
            r'data\.workers = 100000: give a number of processes from 0 to 128, or "auto"',
        ),
        (
            "r50_1x",
            ["train.seed=18446744073709551616"],
            r"train\.seed = .*: .* less than or equal to 9223372036854775807",
        ),
        ("r50_1x", [f"train.seed=0x{'f' * 9000}"], r"train\.seed = <int>: input should be less than or equal to"),
        (
            "r50_1x",
            [f"train.seed={'9' * 5000}"],
            r"^.{,30}train\.seed = '9{79}\.\.\.: input should be a valid integer$",
        ),
        ("r50_1x", [f"data.short_side=[1, {10**20}]"], r"data\.short_side\.1 = 1000.*less than or equal to 65536"),
        ("r50_1x", [f"data.short_side={'[' * 3000}"], r"override of data\.short_side: its value is nested too deeply"),
        ("r50_1x", [f"{'a.' * 3000}a=1"], r"config r50_1x: it is nested too deeply"),
        ("r50_1x", [f"{'a.' * 3000}a=1"] * 2, r"config: it is nested too deeply"),
        ("r50_1x", ["." * 3000], r"^override '\.{79}\.\.\. is not of the form section\.key=value$"),
        ("r50_1x", ["description.x=1"], r"description = \{'x': 1\}: input should be a valid string"),
    ],
)
def test_bad_configs_are_named_with_the_nearest_valid_key(name, overrides, message):
    for data_root in (None, Path("data")):
        with pytest.raises(UserError, match=message):
            load_config(name, overrides, data_root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer\n", r"broken\.toml is not valid TOML"),
        ("base = 5", r"broken\.toml: base = 5 must be the name of a config, or a path, in quotes"),
        ("base = [[5]]", r"broken\.toml: base = \[\[5\]\] must be the name"),
        (f"x = {'[' * 3000}", r"broken\.toml: it is nested too deeply"),
        (f"[{'a.' * 3000}a]", r"broken\.toml: it is nested too deeply"),
        (f"x = {'9' * 5000}", r"broken\.toml is not valid TOML: Exceeds the limit"),
    ],
)
def test_broken_files(text, message, tmp_path):
    (tmp_path / "broken.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "broken.toml")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.toml").mkdir()
    os.mkfifo(tmp_path / "b.toml")
    for name in ("a.toml", "b.toml"):
        with pytest.raises(UserError, match=f"{name} does not exist or is no ordinary file"):
            load_config(tmp_path / name)
    (tmp_path / "c.toml").touch()

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"c\.toml cannot be read: Permission denied"):
        load_config(tmp_path / "c.toml")


def test_bad_files(tmp_path):
    (tmp_path / "circle.toml").write_text('base = "circle.toml"\n')
    with pytest.raises(UserError, match="its bases form a cycle"):
        load_config(tmp_path / "circle.toml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss.cls_pos", "loss.weight_cls_pos"),
        ("data.test_long_side", "inference.long_side"),
        ("test.nms_iou", "inference.nms_iou"),
    ],
)
def test_a_renamed_key_is_named_with_its_new_name_in_an_override_and_in_a_file(old, new, tmp_path):
    message = f"{old} is now {new}"
    with pytest.raises(UserError, match=f"^config r50_1x: {message}$"):
        load_config("r50_1x", [f"{old}=1"])
    with pytest.raises(UserError, match=f"{message}$"):
        override_config(Config(), [f"{old}=1"])
    section, key = old.split(".")
    (tmp_path / "old.toml").write_text(f'base = "r50_1x"\n[{section}]\n{key} = 1\n')
    with pytest.raises(UserError, match=rf"old\.toml: {message}$"):
        load_config(tmp_path / "old.toml")


def test_a_crowd_switch_of_old_files_has_its_new_values():
    with pytest.raises(
        UserError, match=r"ignore_crowd is now data\.crowd \(false is now background, true is now ignore\)"
    ):
        load_config("r50_1x", ["loss.ignore_crowd=true"])
    for old, new in ((True, "ignore"), (False, "background")):
        assert upgrade_keys({"loss": {"ignore_crowd": old}}) == {"data": {"crowd": new}}


def test_renames_lead_to_keys_that_exist_and_leave_the_others():
    keys = flatten(Config()).keys()
    for old, new in RENAMED.items():
        assert not any(key == old or key.startswith(f"{old}.") for key in keys)
        assert any(key == new or key.startswith(f"{new}.") for key in keys)
    values = {"test": {"nms_iou": 0.5}, "inference": {"compile": "off"}, "data": {"shapes": {"seed": 3}}}
    assert upgrade_keys(values) == {
        "inference": {"nms_iou": 0.5, "compile": "off"},
        "data": {"shapes": {"seed": 3}},
    }


def test_keys_that_may_change_when_a_run_is_resumed():
    """None of them has an influence on what a run learns."""
    assert flatten(Config()).keys() - flatten(Config(), fixed_only=True).keys() == {
        "description",
        "published_ap",
        "data.root",
        "data.workers",
        "inference.compile",
        "train.activation_checkpointing",
        "train.checkpoint_every",
        "train.compile",
        "train.compile_ahead",
        "train.deterministic",
        "train.evaluate_every",
        "train.keep_every",
        "train.log_every",
        "train.tensorboard",
    }
