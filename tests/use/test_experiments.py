"""The commands `sweep` and `runs`: a failed run is shown with its cell, seeds are put together on a page."""

import json
import re

import pytest
import yaml

from tests.scores.test_runs import scores_of, write
from tests.training.test_sweeps import toy
from tests.use.shell import quick


def test_a_failed_run_is_shown_with_its_cell(tmp_path, monkeypatch):
    """The only real run: a kernel, papermill, Snakemake."""
    monkeypatch.chdir(tmp_path)
    toy(tmp_path / "toy.ipynb")
    (tmp_path / "sweep.yaml").write_text("recipe: toy.ipynb\nout: out\nfixed: {x: 3}\n")
    done = quick("sweep", "sweep.yaml", "--dry-run")
    assert done.returncode == 0 and "1 runs of toy.ipynb, 1 to do; nothing was started" in done.stdout
    assert not (tmp_path / "out").exists()
    done = quick("sweep", "sweep.yaml", "--quiet")
    assert done.returncode == 1 and "FAILED out/all/seed=7\ncell 3 of toy.ipynb failed: ValueError" in done.stdout
    assert 'raise ValueError("x is too large")' in done.stdout and "1 runs: 1 failed" in done.stdout
    assert (tmp_path / "out/all/seed=7/toy.ipynb").is_file()
    assert re.search(r"all/seed=7\s+failed", quick("sweep", "sweep.yaml", "--dry-run").stdout)


@pytest.mark.parametrize(
    "content, options, what",
    [
        ({"recipe": "toy.ipynb", "grid": {"y": [1]}}, (), "unknown parameter 'y'"),
        ({"recipe": "toy.ipynb"}, ("--profile", "slrum"), "unknown profile 'slrum'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, content, options, what):
    monkeypatch.chdir(tmp_path)
    toy(tmp_path / "toy.ipynb")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    done = quick("sweep", "sweep.yaml", *options)
    assert done.returncode == 1 and what in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def folder(tmp_path):
    for model in "AB":
        for seed in range(2):
            eer = {"A": 0.2, "B": 0.1}[model] + 0.01 * seed
            metrics = [("dev, after", "eer", eer, eer - 0.05, eer + 0.05), ("dev, after", "cllr", 0.5, None, None)]
            place = tmp_path / "runs" / f"m={model}" / f"seed={seed}"
            write(place, metrics, scores_of(model, seed), model=model, seed=seed, notes="<b>&")
    write(tmp_path / "runs/m=C/seed=0", None, model="<script>", seed=0, notes="x" * 100)
    (place / "detection.html").touch()
    (place / "detection.ipynb").touch()
    return tmp_path / "runs"


def test_runs_are_listed_with_seeds_together(folder):
    done = quick("runs", folder, "--compare", "m=A", "m=B", "--replicates", "30")
    assert done.returncode == 0 and "5 runs, 4 complete; metrics of dev, after" in done.stdout
    assert re.search(r"\bB\b.*\b2\b +10\.5% \[4\.1%, 16\.9%\] +0\.7%", done.stdout)
    assert "m=C/seed=0 (incomplete)" in done.stdout and "20.0% [15.0%, 25.0%]" in done.stdout
    assert re.search(r"eer, m=A minus m=B: \d+\.\d% \[.*\], p = 0\.\d+; 2 seeds of each on dev", done.stdout)
    assert "p = " in quick("runs", folder, "--compare", "m=A/seed=0", "m=B/seed=1", "--replicates", "20").stdout
    done = quick("runs", folder, "--compare", "m=A", "m=D")
    assert done.returncode == 1 and "no run and no setting 'm=D'" in done.stderr
    assert quick("runs", folder / "nothing").returncode == 1


def test_the_page_is_one_file_that_sorts(folder, tmp_path):
    page = tmp_path / "pages/all.html"
    assert quick("runs", folder, "--html", page).returncode == 0
    text = page.read_text()
    assert "<script>" in text and "&lt;script&gt;" in text and "<b>&" not in text
    assert '<a href="../runs/m%3DB/seed%3D1/detection.html">m=B/seed=1</a>' in text and text.count("<a href") == 1
    assert 'data-key="0.2"' in text and 'data-kind="number" class="num">eer</th>' in text.replace("\n", " ")
    assert "http" not in re.sub(r'http-equiv|lang="en"', "", text) and json.dumps(text)


def test_columns_of_the_page_are_sorted_in_a_browser(folder, tmp_path, browser):
    quick("runs", folder, "--html", tmp_path / "runs.html")
    browser.get((tmp_path / "runs.html").as_uri())
    script = (
        "return [...document.querySelectorAll('table.index')[1].tBodies[0].rows].map(r => r.cells[0].innerText)"
    )
    before = browser.execute_script(script)
    heads = browser.execute_script(
        "return [...document.querySelectorAll('table.index')[1].querySelectorAll('th')]"
    )
    at = [head.text for head in heads].index("eer")
    heads[at].find_element("tag name", "button").click()
    after = browser.execute_script(script)
    assert before[0] == "m=A/seed=0" and after[0] == "m=B/seed=0" and after[-1].startswith("m=C")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
