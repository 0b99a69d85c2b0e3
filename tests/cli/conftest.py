"""Fixtures of the command line tests."""

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, scratch_registry):
    """An empty working directory, and a registry that forgets the plugins of a test."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
