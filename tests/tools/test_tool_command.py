"""What the programs have in common."""

import os
import signal

import pytest

from dllm.tools.command import exit_code, held_interrupts, whole_folder


def test_an_interruption_waits_for_the_piece_at_hand(capsys):
    done = []

    def work():
        with held_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("this piece")
        done.append("the next")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert exit_code(work) == 130 and done == ["this piece"]
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on" in capsys.readouterr().err


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match="disk full"), whole_folder(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="mine exists"), whole_folder(tmp_path / "mine"):
        pass
