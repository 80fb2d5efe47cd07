"""The demo that runs in the browser alone: it says what Python says, and asks nobody else for anything."""

import functools
import http.server
import importlib.util
import json
import math
import re
import threading

import numpy as np
import pytest
import soundfile as sf
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import ROOT
from wedefense_nb.data.audio import KAISER
from wedefense_nb.models.detector import build, save_model
from wedefense_nb.task import bayes_threshold
from wedefense_nb.use.predict import Evidence, Predictor

SOURCES = ROOT / "tools/site/demo"
_spec = importlib.util.spec_from_file_location("browser_demo", SOURCES / "build_demo.py")
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A detector of 1,634 random numbers, whose calibration is invented."""
    torch.manual_seed(0)
    place = save_model(build("bands", n_mels=24), tmp_path_factory.mktemp("browser") / "model")
    Evidence(1.0, 0.6, 0.4, a=20.0, b=20.0, drawn=np.zeros((0, 3))).save(place)
    (place / "card.md").write_text("# <b>A card</b>\n")
    return place


@pytest.fixture(scope="module")
def page(folder):
    """The page without the runtime."""
    out = folder.parent / "page"
    maker.page(folder, out, "This one has learned nothing.")
    return out


# Without a browser


def test_the_page_is_complete_and_bound_to_its_own_site(page):
    found = {path.name for path in page.iterdir()}
    assert found == {*maker.PAGE, "look.css", "model.onnx", "settings.json", "examples"}
    html = (page / "index.html").read_text()
    policy = dict(
        re.findall(r"([\w-]+) ([^;]+)", re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1])
    )
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'" and "unsafe-inline" not in html
    asked = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert set(asked) <= found | {"data:,"} and " style=" not in html and "onclick" not in html
    for name in ("page.js", "worker.js", "judge.js", "sound.js", "recorder.js"):
        code = (page / name).read_text()
        imported = re.findall(r"from '\./([^']+)'", code)
        assert set(imported) <= found | set(maker.RUNTIME), name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", code), name
    ids = re.findall(r' id="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    wanted = {name for name in re.findall(r"one\('#([\w-]+)", (page / "page.js").read_text())}
    assert wanted <= set(ids), wanted - set(ids)


def test_the_script_is_told_what_reports_say(page, folder):
    told = json.loads((page / "settings.json").read_text())
    assert told["words"][0] == [2, "says nothing either way"] and told["words"][-1][0] is None
    assert 0.5 in told["priors"] and 1.0 in told["costs"] and told["card"] == "# <b>A card</b>\n"
    assert len(told["examples"]) == 3 and all((page / "examples" / name).is_file() for _, name in told["examples"])
    assert told["model_bytes"] == (page / "model.onnx").stat().st_size
    sound = (SOURCES / "sound.js").read_text()
    for name, value in (("WIDTH", "lowpass_filter_width"), ("ROLLOFF", "rolloff"), ("BETA", "beta")):
        assert float(re.search(rf"const {name} = ([\d.]+)", sound)[1]) == KAISER[value]


def test_what_is_not_the_pinned_runtime_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not onnxruntime-web .* as it was pinned"):
        maker.unpack(tmp_path / "x.tgz", tmp_path)
    monkeypatch.setattr(maker, "ROOT", tmp_path)
    monkeypatch.setattr(maker.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="npm, which is not installed"):
        maker.runtime()


def test_a_localizer_or_a_detector_without_calibration_makes_no_page(tmp_path):
    torch.manual_seed(0)
    folder = save_model(build("bands", n_mels=24), tmp_path / "model")
    with pytest.raises(ValueError, match="not calibrated"):
        maker.page(folder, tmp_path / "out", "")


# In the browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain file server, as `python -m http.server` is one."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(page):
    """The address of the whole page; skipped where onnxruntime-web was not fetched: tests need no network."""
    vendored = ROOT / "build" / f"onnxruntime-web-{maker.VERSION}"
    if not all((vendored / name).is_file() for name in maker.RUNTIME):
        pytest.skip(
            "no onnxruntime-web in build/: `python tools/site/demo/build_demo.py --fetch`, which needs npm"
        )
    for name in maker.RUNTIME:
        if not (page / name).exists():
            (page / name).symlink_to(vendored / name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visited(browser, site):
    """The page, just opened; afterwards nothing has been asked of anybody else, and no policy was broken."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(site)
    wait(browser, lambda b: one(b, "#file").is_enabled())
    yield browser
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and [url for url in asked if not url.startswith((site, f"blob:{site}", "data:"))] == []
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def wait(browser, condition):
    return WebDriverWait(browser, 30, poll_frequency=0.05).until(condition)


def one(browser, selector: str):
    return browser.find_element(By.CSS_SELECTOR, selector)


def choose(browser, path) -> None:
    one(browser, "#file").send_keys(str(path))


def answered(browser) -> float:
    """The LLR that the page computed."""
    wait(browser, lambda b: one(b, "#answer").is_displayed() or one(b, "#problem").is_displayed())
    assert not one(browser, "#problem").is_displayed(), one(browser, "#problem").text
    return float(one(browser, "#verdict").get_attribute("data-llr"))


def told(browser) -> str:
    """The line about what went wrong."""
    wait(browser, lambda b: one(b, "#problem").is_displayed())
    return one(browser, "#problem").text


def move(browser, name: str, to: int) -> None:
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(script, one(browser, f"#{name}"), to)


def test_it_says_what_python_says(visited, folder, samples, tmp_path):
    """Of a recording of the corpus, and of a stereo file of another rate with a pause that does not count."""
    voice = samples.paths()[2]
    rng = np.random.default_rng(0)
    sounds = [0.1 * np.sin(2 * np.pi * 150 * np.arange(20000) / 22050) ** 9, np.zeros(70000)]
    wave = np.concatenate([*sounds, sounds[0]]) + 1e-3 * rng.normal(size=110000)
    sf.write(tmp_path / "pause.wav", np.stack([wave, 0.5 * wave], 1), 22050)
    predictor = Predictor.from_folder(folder)
    one(visited, "#examples button").click()
    assert math.isfinite(answered(visited))
    for path in (voice, tmp_path / "pause.wav"):
        judged = predictor.detect(path)
        choose(visited, path)
        wait(visited, lambda b: one(b, "#name").text == path.name)  # noqa: B023
        assert answered(visited) == pytest.approx(judged.llr, abs=1e-3)
        assert f"{judged.quality.speech:.2f} s" in one(visited, "#quality").text
        assert judged.sha256 in one(visited, "#audit").text
    assert 0 < sum(row["counted"] for row in judged.windows) < len(judged.windows)
    assert visited.execute_script("return document.querySelectorAll('.skipped').length") > 0


def test_a_reader_moves_plays_and_reads(visited, folder, samples):
    voice = samples.paths()[3]
    choose(visited, voice)
    llr = answered(visited)
    assert one(visited, "#verdict").get_attribute("data-decision") == ("bonafide" if llr >= 0 else "spoof")
    priors = maker.report.PRIOR_STEPS
    words = set()
    for at in (0, len(priors) - 1, 12):
        move(visited, "prior", at)
        p = 1 / (1 + math.exp(bayes_threshold(priors[at], 1, 1) - llr))
        assert one(visited, "#p-real").text == maker.report.in_percent(p)
        words.add(one(visited, "#word").text)
    assert words == {"REAL VOICE (bona fide)", "FAKE (spoof)"}
    move(visited, "fa", 6)
    threshold = bayes_threshold(priors[12], 1, maker.report.COST_STEPS[6])
    assert maker.report.signed(threshold) in one(visited, "#assumed").text
    assert "has learned nothing" in one(visited, "#caveats").text
    assert one(visited, "#card pre").get_attribute("textContent") == "# <b>A card</b>\n"

    line = one(visited, ".seek")
    visited.execute_script("arguments[0].scrollIntoView({block: 'center'})", line)
    wait(visited, lambda b: b.execute_script("return document.querySelector('#sound').readyState") >= 3)
    seconds = float(line.get_attribute("aria-valuemax"))
    line.click()  # in the middle
    at = wait(visited, lambda b: b.execute_script("return document.querySelector('#sound').currentTime"))
    assert seconds / 2 <= at < seconds
    line.send_keys(Keys.END, Keys.HOME, Keys.ARROW_RIGHT)
    visited.execute_script("document.querySelector('#sound').pause()")
    assert 0.1 <= float(line.get_attribute("aria-valuenow")) < seconds
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    visited.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        assert visited.execute_script("return document.documentElement.scrollWidth") == 390
    finally:
        visited.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_cannot_be_judged_is_told(visited, tmp_path):
    (tmp_path / "\u202eletter.wav").write_text("Dear Sir or Madam, this is no recording")
    choose(visited, tmp_path / "\u202eletter.wav")
    said = told(visited)
    assert said.startswith("\ufffdletter.wav: is no recording that this browser can read") and "\n" not in said
    with open(tmp_path / "large.wav", "wb") as file:
        file.truncate(10**9)
    choose(visited, tmp_path / "large.wav")
    wait(visited, lambda b: "large.wav" in told(b))
    assert told(visited) == "large.wav: is too large (1000 MB): at most 200 MB."
    for name, wave, said in (("short", np.ones(900) / 9, "only 0.06 s long"), ("quiet", np.zeros(9000), "silent")):
        sf.write(tmp_path / f"{name}.wav", wave, 16000)
        choose(visited, tmp_path / f"{name}.wav")
        wait(visited, lambda b: said in one(b, "#reasons").text)  # noqa: B023
        assert "CANNOT BE JUDGED" in one(visited, "#word").text and not one(visited, "#assumptions").is_displayed()
        assert one(visited, "#verdict").get_attribute("data-llr") is None


def test_a_long_recording_shows_how_far_it_is_and_can_be_stopped(visited, tmp_path):
    sf.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).normal(size=16000 * 20), 16000)
    visited.execute_script("""
        window.seen = new Set();
        new MutationObserver(() => window.seen.add(document.querySelector('#doing').textContent))
          .observe(document.querySelector('#doing'), {childList: true, characterData: true, subtree: true});
    """)
    choose(visited, tmp_path / "long.wav")
    answered(visited)
    seen = visited.execute_script("return [...window.seen]")
    windows = [int(text.split()[2]) for text in seen if text.startswith("Judging window ")]
    assert len(windows) > 3 and windows == sorted(windows) and windows[-1] <= 39
    assert any(text.startswith("Loading the runtime (14 MB, once)") for text in seen)
    assert "LLR of 39 windows" in one(visited, "#said").text and not one(visited, "#busy").is_displayed()
    choose(visited, tmp_path / "long.wav")
    wait(visited, lambda b: one(b, "#doing").text.startswith("Judging window"))
    visited.execute_script("document.querySelector('#stop').click()")
    assert told(visited) == "Stopped." and not one(visited, "#answer").is_displayed()


def test_it_judges_what_is_recorded_and_with_another_model(visited, page, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no such file")
    one(visited, "#model").send_keys(str(tmp_path / "model.onnx"))
    assert told(visited) == "model.onnx: this is no ONNX file, or a damaged one."
    one(visited, "#model").send_keys(str(page / "model.onnx"))
    wait(visited, lambda b: "In use: bands, from model.onnx" in one(b, "#using").text)
    visited.execute_script("""
        navigator.mediaDevices.getUserMedia = async () => {
          const context = new AudioContext();
          const tone = new OscillatorNode(context, {frequency: 200});
          const out = new MediaStreamAudioDestinationNode(context);
          tone.connect(out);
          tone.start();
          return out.stream;
        };
    """)
    one(visited, "#record").click()
    wait(visited, lambda b: one(b, "#recording").text == "1 s")
    one(visited, "#record").click()
    assert math.isfinite(answered(visited)) and one(visited, "#name").text == "Recording"
    assert (
        "from model.onnx" in one(visited, "#audit").text
        and "has learned nothing" not in one(visited, "#caveats").text
    )


def test_neither_page_nor_worker_can_reach_another_server(browser, site):
    """What the policy is for, tried in both: a worker from a blob is under the policy of its page."""
    browser.get(site)
    ask = "fetch('http://127.0.0.1:9/').catch(() => {})"
    hear = "addEventListener('securitypolicyviolation', (event) => DONE(event.effectiveDirective))"
    here = f"const done = arguments[0]; {hear.replace('DONE', 'done')}; {ask};"
    assert browser.execute_async_script(here) == "connect-src"
    there = json.dumps(f"{hear.replace('DONE', 'postMessage')}; {ask};")
    script = f"""const done = arguments[0];
        const blob = URL.createObjectURL(new Blob([{there}], {{type: 'text/javascript'}}));
        const worker = new Worker(blob, {{type: 'module'}});
        worker.onmessage = (event) => done(event.data);"""
    assert browser.execute_async_script(script) == "connect-src"
