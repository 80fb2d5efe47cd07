"""Headers that tests read are remembered in a folder of their own."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEDEFENSE_NB_CACHE", str(tmp_path / "cache"))
