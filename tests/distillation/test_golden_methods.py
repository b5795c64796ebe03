"""Each method against the figures of its authors' code, and the command that compares them."""

import json
import sys

import pytest
from float64 import enable_x64
from golden import methods

GOLDEN, TABLE = methods.Golden(), methods.table()


@pytest.fixture(autouse=True)
def float64():
    with enable_x64(True):
        yield


@pytest.mark.parametrize("name", GOLDEN.cases)
def test_golden_case(name):
    case = GOLDEN.cases[name]
    found = methods.errors(GOLDEN, case, TABLE[name.partition("/")[0]])
    assert set(case["values"]) <= set(found)
    assert all(error <= case.get("tolerance", GOLDEN.tolerance) for error in found.values()), found


def compared(monkeypatch, capsys, folder, change):
    """Status and lines of the command for the first two cases, one of which is changed."""
    figures = json.loads((methods.FOLDER / "methods.json").read_text())
    figures["cases"] = figures["cases"][:2]
    change(figures["cases"][0])
    (folder / "methods.json").write_text(json.dumps(figures))
    (folder / "methods.npz").symlink_to(methods.FOLDER / "methods.npz")
    monkeypatch.setattr(sys, "argv", ["tests.golden.methods", "--golden", str(folder)])
    return methods.main(), capsys.readouterr().out.splitlines()


def test_command_passes(monkeypatch, capsys, tmp_path):
    status, lines = compared(monkeypatch, capsys, tmp_path, lambda case: None)
    assert status == 0
    assert lines[-1].endswith(", 0 failures")


def test_value_outside_its_tolerance_is_a_failure(monkeypatch, capsys, tmp_path):
    def change(case):
        case["values"]["loss"] *= 1 + 1e-8

    status, lines = compared(monkeypatch, capsys, tmp_path, change)
    assert status == 1
    assert lines[0] == "kd/T3: 1.0e-08 (loss), above 1e-09"
    assert lines[-1] == "2 cases, worst error 1.0e-08, 1 failures"


def test_case_without_a_function_is_a_failure(monkeypatch, capsys, tmp_path):
    status, lines = compared(monkeypatch, capsys, tmp_path, lambda case: case.update(name="unknown/T3"))
    assert status == 1
    assert lines[0] == "unknown/T3: no function computes it"
    assert lines[-1].endswith(", 1 failures")
