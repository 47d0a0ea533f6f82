"""The driver on a tree of three tests: which it selects, what it substitutes, what it says of a failure."""

import pytest

from tests.torch_suite.reasons import reason_for
from tests.torch_suite.run import read, run_file
from tests.torch_suite.source import folder_of_tests
from tests.torch_suite.table import failures, page

TREE = """
import unittest
from torch import nn

class TestThree(unittest.TestCase):
    def test_layer(self):
        self.assertEqual(nn.BatchNorm2d(3).num_features, 3)

    def test_whose(self):
        self.assertEqual(nn.BatchNorm1d(3).__class__.__module__, "torch.nn.modules.batchnorm")

    def test_function(self):
        self.assertEqual(nn.functional.relu.__name__, "relu")
"""


def result(outcome, why=""):
    return {"outcome": outcome, "why": why, "made": True}


@pytest.mark.slow
def test_a_file_runs_on_both_and_only_where_a_layer_is_made(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_nn.py").write_text(TREE)
    tests = folder_of_tests(tmp_path, tmp_path / "out")
    stock = run_file(tests, "test_nn.py", tmp_path / "stock.jsonl", ours=False)
    # What mentions no batch norm is not run at all.
    assert {test.split("::")[-1]: found["made"] for test, found in stock.items()} == {
        "test_layer": True,
        "test_whose": True,
    }
    assert {found["outcome"] for found in stock.values()} == {"passed"}
    chosen = [test for test, found in stock.items() if found["made"]]
    ours = run_file(tests, "test_nn.py", tmp_path / "ours.jsonl", ours=True, only=chosen)
    assert {test.split("::")[-1]: found["outcome"] for test, found in ours.items()} == {
        "test_layer": "passed",
        "test_whose": "failed",
    }
    assert "batchnorm.layers" in next(found["why"] for found in ours.values() if found["why"])


def test_a_tree_without_tests_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"has no test/test_nn\.py"):
        folder_of_tests(tmp_path, tmp_path)


def test_a_log_tells_which_test_ended_the_process(tmp_path):
    log = tmp_path / "log"
    log.write_text('{"started": "a"}\n{"test": "a", "outcome": "passed"}\n{"started": "b"}\n')
    assert read(log) == ({"a": {"outcome": "passed"}}, "b")


def test_what_stock_fails_is_not_counted_and_a_failure_has_a_reason_or_is_a_fault():
    fuse = "quantization/eager/test_fuse_eager.py::T::test_fuse"
    stock = {fuse: result("passed"), "x::a": result("passed"), "x::b": result("failed"), "x::c": result("passed")}
    ours = {
        fuse: result("failed", "did not find fuser method for"),
        "x::a": result("failed", "wrong"),
        "x::c": result("passed"),
    }
    found = failures(stock, ours)
    assert set(found) == {fuse, "x::a"}
    assert found["x::a"] == ("wrong", None)
    assert reason_for(fuse, "other words") is None
    table = page({"x": (stock, ours)})
    assert "| x | 4 | 3 | 1 | 1 | 1 |" in table
    assert "to_stock(model)" in table
    assert "Fault: wrong" in table
