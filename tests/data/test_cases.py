"""Which test covers each kind of data that was tried (cases/data in the material that the project shares)."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"  # where the material lies beside the repository

READ = "data/test_real_data.py::test_what_can_be_read_is_read_rightly"
ONE_SPLIT = "data/formats/test_exports.py::test_layouts_with_one_split_lead_to_two_by_the_commands_that_are_printed"
BOTH_SPLITS = "data/formats/test_exports.py::test_layouts_with_both_splits_are_converted"
COVERED = {  # by folder: a test, and its parameter
    "all-bmp": ("data/test_real_data.py::test_kinds_of_files", ".bmp"),
    "area-zero": (READ, "area 0"),
    "background-6of8": ("data/test_real_data.py::test_background_images_are_counted_and_can_be_trained_on", None),
    "base": ("data/test_real_data.py::test_a_run_takes_steps_and_evaluates", None),
    "bbox-normalised": ("data/test_real_data.py::test_boxes_in_shares_and_boxes_as_corners_are_recognised", None),
    "catid-string": (READ, "category id a string"),
    "crowd-some": (
        "data/test_real_data.py::test_half_of_the_boxes_as_crowd_is_a_warning_with_cause_and_remedy",
        None,
    ),
    "cvat-rle": ("data/test_real_data.py::test_crowd_alone_is_refused_with_the_same_remedy", None),
    "cvat-rot": ("data/test_real_data.py::test_rotated_boxes_and_a_broken_area_are_named", None),
    "dense-300": ("data/test_real_data.py::test_very_many_objects_in_an_image_are_a_warning", None),
    "exif6-raw-sizes": ("data/test_real_data.py::test_annotations_of_the_file_as_it_lies_are_recognised", None),
    "fiftyone": ("data/test_real_data.py::test_fiftyone_has_a_folder_for_each_split", None),
    "grown": ("train/test_trainer.py::test_a_run_is_not_resumed_on_changed_data_unless_asked_to", None),
    "id-string": (READ, "image ids that are names"),
    "iscrowd-null": (READ, "iscrowd null"),
    "labelme": (ONE_SPLIT, "labelme"),
    "leak": ("data/test_real_data.py::test_the_same_files_in_both_splits_are_a_leak", None),
    "ls-backslash": (READ, "backslashes"),
    "ls-media": (READ, "backslashes of another folder"),
    "ls-sub1": (READ, "a folder too many"),
    "lvis": (READ, "a URL under another key"),
    "names-odd": ("console/test_fonts.py::test_characters_that_no_font_has_are_escaped_and_nothing_warns", None),
    "no-width-height": (READ, "no width and height"),
    "onlybmp": ("predict/test_predict.py::test_images_of_every_kind", None),
    "pics": ("predict/test_predict.py::test_12_bits_in_16_are_named_and_images_of_too_many_pixels_skipped", None),
    "renamed": ("train/test_step.py::test_rows_of_the_class_convolution_are_matched_by_name", None),
    "train-all-broken": (
        "data/test_real_data.py::test_a_split_without_a_readable_image_is_refused_by_check_and_by_training",
        "train",
    ),
    "v-bmp": (BOTH_SPLITS, "VOC with BMP"),
    "v-flat": (ONE_SPLIT, "VOC of labelImg"),
    "v-listquirks": (BOTH_SPLITS, "VOC with .jpg in its lists"),
    "v-nolists": (ONE_SPLIT, "VOC of labelme2voc"),
    "v-roboflow": (BOTH_SPLITS, "VOC of Roboflow"),
    "val-all-broken": (
        "data/test_real_data.py::test_a_split_without_a_readable_image_is_refused_by_check_and_by_training",
        "val",
    ),
    "val-no-annotations": (
        "data/test_real_data.py::test_validation_without_objects_is_refused_by_check_and_by_training",
        None,
    ),
    "via": (READ, "image ids from 0, named by strings"),
    "wrong-size-half": (
        "data/test_real_data.py::test_an_orientation_of_wrong_sizes_is_left_out_and_the_other_one_trained_on",
        None,
    ),
    "y-cvat-ultra": (ONE_SPLIT, "YOLO of CVAT, Ultralytics"),
    "y-cvat11": (ONE_SPLIT, "YOLO 1.1 of CVAT"),
    "y-noval": (ONE_SPLIT, "YOLO without val"),
    "y-savetxt": (BOTH_SPLITS, "YOLO of numpy"),
}


@pytest.mark.parametrize("case", COVERED)
def test_each_case_has_a_test(case):
    test, parameter = COVERED[case]
    file, _, name = test.partition("::")
    text = (TESTS / file).read_text()
    assert f"def {name}(" in text
    assert parameter is None or f'"{parameter}"' in text


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases do not lie beside the repository")
def test_each_folder_is_a_case():
    assert {path.name for path in CASES.iterdir() if path.is_dir()} == COVERED.keys()
