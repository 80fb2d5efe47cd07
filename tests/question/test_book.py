import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from tests.conftest import ROOT
from wedefense_nb.book import COLORS, check, imports, modules, plot_map, plot_scores


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_bona_fide_is_blue_and_spoof_is_orange():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    ax = plot_scores(rng.normal(size=60) + 8 * y, y)
    places = {}
    for bar in ax.patches:
        if bar.get_height():
            places.setdefault(to_hex(bar.get_facecolor()), []).append(bar.get_x())
    assert np.mean(places[COLORS["bonafide"]]) > np.mean(places[COLORS["spoof"]]) + 4
    assert (COLORS["bonafide"], COLORS["spoof"]) == ("#1f77b4", "#ff7f0e") and ax.get_xlabel() and ax.get_ylabel()


def test_exercise_checker_accepts_right_and_refuses_wrong():
    right = [(0.3333, 1 / 3), ("a", "a"), (True, True), ([1, 2], np.array([1.0, 2.0])), ({"a": 1}, {"a": 1})]
    wrong = [
        (0.34, 1 / 3),
        (0.334, 1 / 3),
        ("b", "a"),
        ("x", 3),
        (False, True),
        ({"a": 2}, {"a": 1}),
        ([1], [1, 2]),
    ]
    assert all(check(answer, want).startswith("✓") for answer, want in right)
    assert all(check(answer, want, "so").startswith("✗ not yet: so") for answer, want in wrong)
    assert check(..., 1).startswith("✎")


def test_modules_are_listed_in_reading_order():
    house = modules()
    assert house.index[:5].tolist() == ["task", "metrics", "book", "files", "registry"]
    places = [tuple(map(int, chapter.split("."))) for chapter in house.chapter]
    assert places == sorted(places) and house.loc["models.cnn", ["chapter", "part"]].tolist() == ["4.5", "models"]
    assert all((ROOT / path).is_file() for path in house.notebook) and house.about.str.len().min() > 10


def test_imports_are_those_of_the_sources():
    pairs = set(imports().itertuples(index=False, name=None))
    assert {
        ("metrics", "task"),
        ("models.cnn", "models.detector"),
        ("data.parsers.asvspoof", "data.lists"),
    } <= pairs
    assert not any(a == b for a, b in pairs) and {b for a, b in pairs if a == "metrics"} == {"task"}


def test_maps_name_what_they_draw():
    house = modules()
    for part, count in [("", house.part.nunique()), ("scores", (house.part == "scores").sum())]:
        ax = plot_map(part, main=["calibration"])
        texts = [t.get_text() for t in ax.texts]
        assert len(texts) == 2 * count
    assert "6.1 calibration" in texts
