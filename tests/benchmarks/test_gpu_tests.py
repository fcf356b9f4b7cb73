"""The tests of the GPU are handed out to processes; what hangs or crashes costs one test, not the run."""

import pytest

from benchmarks import gpu_tests
from dwtriton.core.errors import UserError

MARKED = "import os, time\nimport pytest\npytestmark = pytest.mark.gpu\n"


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """run(tests by file name, *arguments) -> (exit code, names, failures, what was printed)."""
    monkeypatch.setattr(gpu_tests, "LAST_WORDS", 0.3)

    def run(files, *arguments):
        for name, source in files.items():
            (tmp_path / "made").mkdir(exist_ok=True)
            (tmp_path / "made" / name).write_text(source)
        given = ["--name", "tiny", "--folder", str(tmp_path / "results"), "--processes", "2", *arguments]
        code = gpu_tests.main([*given, str(tmp_path / "made")])
        texts = [(tmp_path / "results" / f"tiny{ending}.txt").read_text() for ending in ("", "-failures")]
        return code, *texts, capsys.readouterr().out

    return run


def test_what_fails_hangs_or_crashes_is_named_with_its_traceback_and_the_rest_is_run(run):
    passing = "\n".join(f"def test_{name}():\n    pass" for name in "abc")
    broken = (
        "def test_wrong():\n    print('seen')\n    assert 1 == 2\n"
        "def test_hangs():\n    time.sleep(60)\n"
        "def test_ends():\n    os._exit(7)\n"
        "def test_elsewhere():\n    pytest.skip('needs two GPUs')\n"
        "def test_last():\n    pass\n"
    )
    files = {
        "test_a.py": MARKED + passing,
        "test_b.py": MARKED + broken,
        "test_c.py": "def test_without_gpu():\n    1 / 0",
    }
    code, names, failures, printed = run(files, "--seconds", "3")
    assert code == 1
    outcomes = {line.rpartition("::")[2]: line.split()[0] for line in names.splitlines()[:-2]}
    assert outcomes == {
        **dict.fromkeys(["test_a", "test_b", "test_c", "test_last"], "passed"),
        **dict.fromkeys(["test_wrong", "test_hangs", "test_ends"], "failed"),
        "test_elsewhere": "skipped",
    }
    for text in ("assert 1 == 2", "seen", "stopped after 3 s", "in test_hangs", "its process ended with code 7"):
        assert text in failures
    assert "missing: none" in printed
    assert "4 passed, 3 failed, 1 skipped, 0 missing" in printed


def test_tests_for_which_there_was_no_time_are_missing(run):
    slow = MARKED + "\n".join(f"def test_{name}():\n    time.sleep(30)" for name in "abc")
    code, names, _, printed = run({"test_slow.py": slow}, "--minutes", "0.05")
    assert code == 3
    assert [line for line in printed.splitlines() if line.startswith("missing: ") and line.count("test_slow.py::") == 3]
    assert "0 passed, 0 failed, 0 skipped, 3 missing" in names


def test_modules_that_cannot_be_imported_are_failures_and_other_modules_are_run(run):
    code, names, failures, _ = run(
        {"test_a.py": "import nothing_of_this_name", "test_b.py": MARKED + "def test_b(): ..."}
    )
    assert code == 1
    assert {line.split()[0] for line in names.splitlines()[:2]} == {"passed", "failed"}
    assert failures.count("No module named 'nothing_of_this_name'") == 1


def test_nothing_to_run_on_and_nothing_to_run_with_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="finds no GPU"):
        gpu_tests.main(["--folder", str(tmp_path)])
    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: None if name == "hypothesis" else object())
    with pytest.raises(UserError, match="the tests need hypothesis: install the extra `test`"):
        gpu_tests.main(["--folder", str(tmp_path)])
