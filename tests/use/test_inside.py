"""The commands `intervene` and `embed`: what they print and write, and a page that is driven in a browser."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.use.shell import quick
from wedefense_nb.book import COLORS
from wedefense_nb.data.audio import save
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.features.upstreams import tiny_checkpoint
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.understanding.embeddings import points_of
from wedefense_nb.understanding.interventions import PLAN
from wedefense_nb.use.commands.inside import map_page

RATE = 16_000


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus whose fakes begin with silence and whose other differences are small, of six speakers."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("inside")
    rows = []
    for i in range(24):
        label = ("bonafide", "spoof")[i % 2]
        wave = 0.05 * rng.normal(size=6000) * (1 + rng.random())
        save(folder / f"u{i}.wav", np.r_[np.zeros(4800 * (i % 2)), wave].astype(np.float32))
        row = {"utt": f"u{i}", "path": f"u{i}.wav", "label": label, "split": "eval", "speaker": f"s{i // 4}"}
        rows.append(row | {"attack": "", "codec": "", "duration": 1.0, "sample_rate": RATE})
    Manifest(pd.DataFrame(rows), root=folder).write(folder)
    return folder


@pytest.fixture(scope="module")
def model(place):
    """A detector that hears how quiet a recording is on average, turned so that quiet means fake."""
    torch.manual_seed(0)
    network = build("bands").eval()
    with torch.no_grad():
        means = [network.embed(torch.from_numpy(x)[None], torch.tensor([len(x)]))[0] for x in _both()]
        network.head.out.weight.copy_(torch.stack([means[1] - means[0], means[0] - means[1]]))
        network.head.out.bias.zero_()
    return save_model(network, place / "model")


def _both():
    noise = (0.07 * np.random.default_rng(1).normal(size=6000)).astype(np.float32)
    return noise, np.r_[np.zeros(4800, np.float32), noise]


def test_what_a_detector_lives_on_is_named(place, model, tmp_path):
    done = quick("intervene", model, place, "-o", tmp_path / "out")
    assert done.returncode == 3 and "FOUND: lead 0 s" in done.stdout and "more than 25%" in done.stdout
    assert set(pd.read_csv(tmp_path / "out/interventions.csv").intervention) == set(PLAN)
    assert len(pd.read_csv(tmp_path / "out/recordings.csv")) == 24
    assert (tmp_path / "out/interventions.png").read_bytes().startswith(b"\x89PNG")


def test_fewer_recordings_of_both_classes_and_json(place, model):
    done = quick("intervene", model, place, "--most", 16, "--limit", 0.999, "--alpha", 1e-6, "--json")
    content = json.loads(done.stdout)
    assert done.returncode == 0 and content["found"] == [] and content["recordings"] == 16
    assert len(content["interventions"]) == len(PLAN)


def test_too_few_and_other_answers(place, model, tmp_path):
    few = Manifest.read(place).subset(speaker=["s0", "s1"])
    few.utterances["path"] = [str(path) for path in few.paths()]
    few.write(tmp_path / "few")
    done = quick("intervene", model, tmp_path / "few")
    assert done.returncode == 4 and "CANNOT SAY: 2 bona fide" in done.stdout
    done = quick("intervene", model, place, "--split", "dev")
    assert done.returncode == 1 and "no labelled recordings in split 'dev'" in done.stderr
    localizer = save_model(build("frame_lcnn_lstm"), tmp_path / "localizer")
    done = quick("intervene", localizer, place)
    assert done.returncode == 1 and "a localizer" in done.stderr


@pytest.fixture(scope="module")
def known(place, model, tmp_path_factory):
    """What `embed` leaves."""
    out = tmp_path_factory.mktemp("known") / "out"
    done = quick("embed", model, place, "--maps", "pca", "-o", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_embed_leaves_vectors_probes_and_a_page(place, known):
    out, said = known
    table = pd.read_parquet(out / "embeddings.parquet")
    assert points_of(table).shape == (24, 32) and list(table.utt) == list(Manifest.read(place).utterances.utt)
    assert set(pd.read_csv(out / "probes.csv").question) == {"label", "level"}
    assert "label" in said and "pca: " in said and "by chance 43%" in said


def test_the_page_needs_nothing_from_outside(known):
    text = (known[0] / "map.html").read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_in_a_browser_a_point_plays_and_keys_are_enough(known, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    browser.get_log("browser")
    browser.get((known[0] / "map.html").as_uri())
    circles = browser.find_elements(By.CSS_SELECTOR, "#field circle")
    audio = browser.find_element(By.ID, "sound")
    played = "const a = document.getElementById('sound'); return a.duration > 0.2 && a.dataset.utt"
    assert len(circles) == 24 and [c.get_attribute("tabindex") for c in circles].count("0") == 1
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click'))", circles[5])
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(played) == "u5")
    assert browser.find_element(By.ID, "said").text.startswith("u5: label spoof, speaker s1")
    focus = "return document.activeElement.getAttribute('aria-label').split(':')[0]"
    assert browser.execute_script(focus) == "u5"
    seen = {"u5"}
    for way in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_DOWN):
        ActionChains(browser).send_keys(way).perform()
        seen.add(browser.execute_script(focus))
    assert len(seen) >= 2
    here = browser.execute_script(focus)
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(played) == here)
    assert audio.get_attribute("src").startswith("data:audio/mpeg;base64,")
    colours = {circles[i].get_attribute("fill") for i in (0, 1)}
    assert colours == {COLORS["bonafide"], COLORS["spoof"]}
    Select(browser.find_element(By.ID, "column")).select_by_visible_text("speaker")
    assert len({c.get_attribute("fill") for c in circles}) == 6
    assert len(browser.find_elements(By.CSS_SELECTOR, "#legend li")) == 6
    assert browser.get_log("browser") == []  # no error, and nothing that the policy forbade


def test_an_upstream_has_layers_and_a_detector_parts(place, model, tmp_path):
    few = Manifest.read(place)
    few.utterances["path"] = [str(path) for path in few.paths()]
    folder = few.subset(speaker=["s0", "s1", "s2"]).write(tmp_path / "few")
    done = quick(
        "embed",
        tiny_checkpoint(tmp_path / "tiny.pt"),
        folder,
        "--layer",
        1,
        "--maps",
        "none",
        "-o",
        tmp_path / "a",
    )
    assert done.returncode == 0, done.stderr
    assert points_of(pd.read_parquet(tmp_path / "a/embeddings.parquet")).shape == (12, 32)
    assert not (tmp_path / "a/map.html").exists()
    done = quick("embed", model, folder, "--part", "front", "--maps", "none", "-o", tmp_path / "b")
    assert points_of(pd.read_parquet(tmp_path / "b/embeddings.parquet")).shape == (12, 80)
    for words, message in {("--layer", 1): "say --part", ("--maps", "tsne"): "unknown projection 'tsne'"}.items():
        done = quick("embed", model, folder, *words, "-o", tmp_path / "c")
        assert done.returncode == 1 and message in done.stderr


def test_a_page_of_other_recordings_is_refused(known, place):
    table = pd.read_parquet(known[0] / "embeddings.parquet")
    with pytest.raises(ValueError, match="as many places and recordings"):
        map_page(table, Manifest.read(place).paths()[:3], {"pca": (np.zeros((24, 2)), 0.1)})
