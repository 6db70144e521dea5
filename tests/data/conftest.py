"""Data sets are prepared in a folder of the test's own."""

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("BASE_DATASETS_DIR", raising=False)
    return tmp_path
