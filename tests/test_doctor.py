"""`dllm doctor` and the command line around it."""

from __future__ import annotations

import inspect
import json

import pytest

import dllm_kernels
from dllm import cli, doctor


def test_every_operation_is_tested():
    operations = {name for name in dllm_kernels.__all__ if inspect.isfunction(getattr(dllm_kernels, name))}
    assert set(doctor.SELF_TESTS) == operations


def test_report_as_json(capsys):
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert list(report) == list(doctor.PARTS)
    assert code == 0, report["self-test"]
    assert {row["impl"] for row in report["self-test"]} == {"reference", "cpu", "triton"}
    assert all(row["because"] for row in report["picked"])


def test_a_wrong_result_fails_and_says_so(monkeypatch, capsys):
    right = doctor.SELF_TESTS["transfer_tokens"]

    def wrong(impl, device):
        count, canvas = right(impl, device)
        return count + (impl == "reference"), canvas

    monkeypatch.setitem(doctor.SELF_TESTS, "transfer_tokens", wrong)
    monkeypatch.setattr(doctor, "_candidates", lambda: [("reference", "cpu", None), ("cpu", "cpu", None)])
    assert cli.main(["doctor"]) == 1
    assert "failed: AssertionError" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"dllm {dllm_kernels.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["doctor", "--no-such-option"]])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: dllm" in capsys.readouterr().err
