"""What is downloaded from the Hub, and where it goes; the Hub itself is not asked."""

from __future__ import annotations

import huggingface_hub
import pytest

from dllm.tools import download_hf_dataset, download_hf_model

TOOLS = {"model": (download_hf_model, "BASE_MODELS_DIR"), "dataset": (download_hf_dataset, "BASE_DATASETS_DIR")}


@pytest.mark.parametrize("kind", TOOLS)
def test_it_lies_where_the_loaders_look(kind, tmp_path, monkeypatch, capsys):
    tool, base = TOOLS[kind]
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options) or options["local_dir"]
    )
    monkeypatch.delenv(base, raising=False)
    assert tool.main([f"--{kind}_id", "me/mine"]) == 1 and not asked
    assert f"set {base} to the folder of all downloads, or name one by --local_dir" in capsys.readouterr().err
    monkeypatch.setenv(base, str(tmp_path))
    assert tool.main([f"--{kind}_id", "me/mine", "--revision", "v1"]) == 0
    assert asked["local_dir"] == tmp_path / "me" / "mine" and asked["repo_type"] == kind and asked["revision"] == "v1"
    assert ("*.bin" in asked["ignore_patterns"]) == (kind == "model")
    assert tool.main([f"--{kind}_id", "me/mine", "--local_dir", "here"]) == 0 and str(asked["local_dir"]) == "here"
    assert "me/mine: here" in capsys.readouterr().out


@pytest.mark.parametrize("kind", TOOLS)
def test_what_the_hub_refuses_is_one_line(kind, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError("no such repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert TOOLS[kind][0].main([f"--{kind}_id", "me/mine", "--local_dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"download_hf_{kind}: no such repository\n"
