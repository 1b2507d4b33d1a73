"""Every fault of the list has a test, or a reason why not, in docs/faults.md."""

import ast
import re

import pytest

from tests.faults.faults import FAULTS
from tests.running import ROOT

ROWS = re.findall(r"^\| (F\d+|Law 1) \| (.+?) \| (.+?) \|$", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_fault_has_one_row():
    assert [number for number, _, _ in ROWS] == [*(f"F{number}" for number in range(1, 22)), "Law 1"]


@pytest.mark.parametrize(("number", "shown"), [(number, shown) for number, _, shown in ROWS])
def test_a_row_names_tests_that_exist_or_a_reason(number, shown):
    named = TEST.findall(shown)
    assert named or re.search(r"\bFire\b|Not tested: \w+", shown)
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in tree.body if isinstance(node, functions)}, f"{path}::{name}"


def test_the_mix_has_what_the_table_says_of_it():
    fire = {number for number, _, shown in ROWS if re.search(r"\bFire\b", shown)}
    # The sender repeats requests, and sends event times in no order.
    assert {fault.number for fault in FAULTS} | {"F14", "F15"} == fire
