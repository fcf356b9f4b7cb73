"""Generated configs and annotations of every layout through the commands: success or an `error:` line, nothing else."""

import copy
import json
import shutil

from hypothesis import given
from hypothesis import strategies as st

from dwtriton.config.load import flatten
from dwtriton.config.schema import Config, DataConfig, ShapesConfig
from tests.support.generated_cases import THOROUGH, examples
from tests.support.hostile_data import coco_content, settings, write_coco
from tests.support.strict_streams import run_on_strict_streams

FILES = ["a.jpg", "b.jpg"]
TEXTS = [
    "",
    "x",
    "a.jpg",
    "\0",
    "\x1b[2J",
    "\ud800",
    "日本",
    "$^$",
    "[red]",
    "../a.jpg",
    "/dev/zero",
    ".",
    "x" * 300,
    "http://[",
]
TEXTS += ["1", "-7", "1e308", "1e999", "nan", "9" * 5000, "0x10", "true"]
NUMBERS = [0, -1, 1, 2**31, 2**53 + 1, 2**63, 10**40, 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from(TEXTS) | st.sampled_from(NUMBERS) | st.integers(-70, 70) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "name", "size", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "id",
    "file_name",
    "width",
    "height",
    "name",
    "supercategory",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
]
KEYS += ["segmentation", "weight", "attributes", "rotation", "coco_url", "drawn"]


def outcome(name, *arguments):
    """Run a command as its own process would, with output that takes ASCII alone; return its exit code."""
    code, _, error = run_on_strict_streams(name, *arguments)
    assert not set(error) & set(map(chr, range(0x20))) - {"\n", "\t"}
    assert code == 0 or error.splitlines()[-1].strip()
    assert code == 0 or error.startswith("error: ") or "usage: " in error
    assert code in (0, 1, 2)
    return code


# --- configs

ALL_KEYS = sorted(flatten(Config(data=DataConfig(shapes=ShapesConfig()))))
SECTIONS = sorted({key.rpartition(".")[0] for key in ALL_KEYS} - {""})
TOML_TEXTS = ["true", "false", "0", "1", "-1", "16", "5", "0.5", "1e300", "nan", "inf", "-inf", "1e400", "[]", "[1, 2]"]
TOML_TEXTS += ["[64, 64]", "[[64, 96]]", "[2, 1]", "[nan, 1, 1]", "[1, 1, 1]", "{}", "{a = 1}", "{a = {a = 1}}", '"x"']
TOML_TEXTS += ['""', '"none"', "'auto'", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "[" * 2000, "[" * 500 + "]" * 500]
TOML_TEXTS += ["2020-01-01", "1979-05-27T07:32:00Z", '"\\u001b[2J"', '"\\ud800"', "=", "#", '"', "x y", "\0", "\x1b"]
TOML_VALUES = st.sampled_from([*TOML_TEXTS, "\udce9"]) | st.text(max_size=8)
NAMES = st.sampled_from(
    [*ALL_KEYS, *SECTIONS, "base", "data.class_weights.a", "loss.loc", "test.nms_iou", "a.b", "a" + ".a" * 2000]
)
PAIRS = st.tuples(NAMES | st.text(max_size=6), TOML_VALUES)


@examples(100)
@given(
    lines=st.lists(PAIRS, max_size=4),
    junk=st.text(max_size=12) | st.sampled_from(["", "[data]\n", "[[data]]\n"]),
    overrides=st.lists(PAIRS, max_size=2),
)
def test_configs(lines, junk, overrides, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "configs"
    folder.mkdir(exist_ok=True)
    text = "\n".join([*(f"{key} = {value}" for key, value in lines), junk])
    (folder / "a.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    sets = [word for key, value in overrides for word in ("--set", f"{key}={value}")]
    outcome("train", "--cfg", folder / "a.toml", "--data", folder, "--plan", *sets)  # where there are no data
    outcome("train", "--cfg", "r50_1x", "--data", folder, "--plan", *sets)


@examples(60)
@given(overrides=st.lists(PAIRS, min_size=1, max_size=3))
def test_settings_of_a_run_on_data(overrides, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "data for settings"
    if not root.exists():
        write_coco(root, ["a", "b"], FILES)
    pairs = ["head.num_classes=2", *(f"{key}={value}" for key, value in overrides)]
    outcome("train", "--cfg", "r50_1x", "--data", root, "--plan", *settings(*pairs))


# --- COCO JSON


@st.composite
def coco_files(draw):
    """A COCO file with some values replaced, added or removed; now and then cut off or with other bytes."""
    content = copy.deepcopy(coco_content(["a", "b"], FILES))
    for _ in range(draw(st.integers(0, 4))):
        section = draw(st.sampled_from(["images", "categories", "annotations"]))
        entries = content.get(section)
        change = draw(st.sampled_from(["set"] * 6 + ["drop", "repeat", "entry", "section"]))
        if change == "section" or not isinstance(entries, list) or not entries:
            content[draw(st.sampled_from([section, "info", "licenses"]))] = draw(VALUES)
            continue
        place = draw(st.integers(0, len(entries) - 1))
        entry = entries[place]
        if change == "entry" or not isinstance(entry, dict):
            entries[place] = draw(VALUES)
        elif change == "repeat":
            entries.append(copy.deepcopy(entry))
        elif change == "drop":
            entry.pop(draw(st.sampled_from(KEYS)), None)
        else:
            entry[draw(st.sampled_from(KEYS))] = draw(
                VALUES | st.lists(st.sampled_from(NUMBERS), min_size=4, max_size=6)
            )
    text = bytearray(json.dumps(content).encode())
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=1)):
        text[place % len(text)] = byte
    return bytes(text[: draw(st.sampled_from([None] * 9 + [len(text) // 2]))])


@examples(100)
@given(train=coco_files(), val=st.none() | coco_files())
def test_annotation_files(train, val, tmp_path_factory, monkeypatch):
    root = tmp_path_factory.getbasetemp() / "annotation files"
    if not root.exists():
        write_coco(root, ["a", "b"], FILES)
    if not THOROUGH:  # drawing takes most of the time
        monkeypatch.setattr("dwtriton.data.__main__.draw_sheet", lambda found: None)
    monkeypatch.setattr("dwtriton.data.__main__.write_sheet", lambda sheet, path: None)
    for split, content in (("train", train), ("val", val or train)):
        (root / "annotations" / f"instances_{split}2017.json").write_bytes(content)
    checked = outcome("data", "check", root, "--out", root.with_name("checked"), "--force")
    planned = outcome("train", "--cfg", "r50_1x", "--data", root, "--plan", *settings("head.num_classes=2"))
    assert checked == 0 or planned != 0  # what check refuses is not trained on


# --- YOLO


def convert(root):
    """Convert a data set as it is, and without what is broken in it."""
    out = root.with_name(f"{root.name} converted")
    shutil.rmtree(out, ignore_errors=True)
    outcome("data", "convert", root, "--out", out)
    outcome("data", "convert", root, "--out", out, "--skip-broken", "--force", "--json")


YAML_TEXTS = ["[a, b]", "[a]", "[]", "{0: a, 1: b}", "{1: a}", "a", ".", "images/train", "[images/train, images/val]"]
YAML_TEXTS += [
    "nowhere",
    "../x",
    "&x [*x]",
    "[[a]]",
    "[a, a]",
    "!!python/name:os.system",
    "~",
    "{",
    "[" * 600,
    "|",
    "*y",
]
YAML_TEXTS += ["\x1b", "'\ud800'", "/dev/zero", "x" * 300, "images/train/a.jpg", "labels/train/a.txt"]
YAML_VALUES = st.sampled_from(YAML_TEXTS) | st.text(max_size=8)
YAML_KEYS = st.sampled_from(["names", "path", "train", "val", "valid", "test", "nc", "kpt_shape", "<<", "? [a]"])
LABELS = st.lists(
    st.lists(
        st.sampled_from(
            ["0", "1", "2", "-1", "0.5", "1.5", "0.1", "nan", "inf", "1e308", "9" * 5000, "x", "\x1b", "日"]
        ),
        max_size=8,
    ),
    max_size=3,
)


@examples(100)
@given(
    lines=st.lists(st.tuples(YAML_KEYS, YAML_VALUES), max_size=4),
    names=st.sampled_from(["names: [a, b]", ""]),
    labels=LABELS,
)
def test_yolo_data(lines, names, labels, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "yolo"
    if not root.exists():
        images = write_coco(root.with_name("images for yolo"), ["a"], FILES)
        for split in ("train", "val"):
            shutil.copytree(images / f"{split}2017", root / "images" / split)
            (root / "labels" / split).mkdir(parents=True)
    text = "\n".join([names, *(f"{key}: {value}" for key, value in lines)])
    (root / "data.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    (root / "labels" / "train" / "a.txt").write_text("\n".join(map(" ".join, labels)))
    (root / "labels" / "val" / "b.txt").write_text("0 0.5 0.5 0.5 0.5")
    convert(root)


# --- Pascal VOC and labelme


WORDS = st.sampled_from([*TEXTS, "dog", "4", "40", "1e200", "-1e200", "&lt;", "&x;", "<a>", "]]>"]) | st.text(
    max_size=6
)
TAGS = st.sampled_from(
    ["name", "bndbox", "xmin", "ymin", "xmax", "ymax", "difficult", "size", "width", "height", "part"]
)
ELEMENTS = st.recursive(
    WORDS,
    lambda inner: st.lists(st.tuples(TAGS, inner), max_size=5).map(
        lambda parts: "".join(f"<{tag}>{content}</{tag}>" for tag, content in parts)
    ),
    max_leaves=8,
)
OBJECT = "<name>{}</name><bndbox><xmin>{}</xmin><ymin>4</ymin><xmax>{}</xmax><ymax>40</ymax></bndbox>"
OBJECTS = st.builds(OBJECT.format, WORDS, WORDS, WORDS) | ELEMENTS


@examples(60)
@given(
    objects=st.lists(OBJECTS, max_size=3),
    around=ELEMENTS,
    beginning=st.sampled_from(["", '<?xml version="1.0" encoding="x"?>', '<!DOCTYPE a [<!ENTITY x "y">]>', "\0"]),
    listed=st.none() | st.lists(WORDS | st.sampled_from(["a", "a 1", "b.jpg", "/", "..", "a\\b"]), max_size=3),
)
def test_voc_data(objects, around, beginning, listed, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / ("voc" if listed is None else "voc with lists")
    if not root.exists():
        images = write_coco(root.with_name(f"images for {root.name}"), ["a"], FILES)
        shutil.copytree(images / "train2017", root / "JPEGImages")
        (root / "Annotations").mkdir()
    text = "".join(f"<object>{content}</object>" for content in objects)
    xml = f"{beginning}<annotation>{around}{text}</annotation>"
    (root / "Annotations" / "a.xml").write_bytes(xml.encode("utf-8", "surrogatepass"))
    if listed is not None:
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        lines = "\n".join(listed).encode("utf-8", "surrogatepass")
        for split in ("train", "val"):
            (root / "ImageSets" / "Main" / f"{split}.txt").write_bytes(lines)
    convert(root)


POINTS = st.lists(st.lists(st.sampled_from([*NUMBERS, 4, 40, 1e200, "8"]), min_size=2, max_size=2), max_size=4) | VALUES
SHAPE = st.fixed_dictionaries(
    {"label": st.just("dog") | VALUES, "points": POINTS},
    optional={
        "shape_type": st.sampled_from(["rectangle", "circle", "polygon", "mask", "line"]) | VALUES,
        "mask": VALUES,
    },
)


@examples(60)
@given(
    shapes=st.lists(SHAPE | VALUES, max_size=3),
    changes=st.dictionaries(st.sampled_from(["imagePath", "imageHeight", "imageWidth", "shapes"]), VALUES, max_size=2),
)
def test_labelme_data(shapes, changes, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "labelme"
    if not root.exists():
        images = write_coco(root.with_name("images for labelme"), ["a"], FILES)
        shutil.copytree(images / "train2017", root)
    (root / "a.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": shapes} | changes))
    convert(root)
