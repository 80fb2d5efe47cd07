"""A judgement as a page: what it says, what it must not let in, and how it behaves in a browser."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile as sf

from wedefense_nb.data.audio import decode
from wedefense_nb.files import file_print
from wedefense_nb.task import BONAFIDE, bayes_threshold, decide, posterior
from wedefense_nb.understanding.quality import Quality
from wedefense_nb.use import report
from wedefense_nb.use.predict import CANNOT_SAY, Judgement, Localization, Predictor
from wedefense_nb.use.report import (
    Entry,
    Sliders,
    clean_name,
    in_percent,
    index_page,
    make_report,
    page_name,
    report_page,
    signed,
    sketch,
    write_index,
    write_report,
)

RATE = 16_000
NASTY = "\"><script>alert('1')</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202egnp.wav"


def judged(**changes) -> Judgement:
    """A judgement of four seconds, in three windows."""
    rows = [(0.0, 2.0, -1.5, True), (1.0, 3.0, 2.5, True), (2.0, 4.0, 0.5, False)]
    windows = tuple({"start": a, "end": b, "score": llr, "llr": llr, "counted": n} for a, b, llr, n in rows)
    facts = {
        "file": "/home/ann/voice.wav", "sha256": "ab" * 32, "decision": "bonafide", "reasons": (),
        "caveats": ("the channels differ",), "score": 0.7, "llr": 1.25, "low": 0.5, "high": 2.0, "p_spoof": 0.5,
        "c_miss": 1.0, "c_fa": 1.0, "posterior": float(posterior(1.25, 0.5)),
        "quality": Quality(4.0, 3.5, -20.0, -3.0, 40.0, 0.0, 7900.0, RATE, 1, "flac"),
        "distances": {"embedding": 0.4, "sound": 0.2}, "windows": windows, "channels": {},
        "model": {"name": "bands", "card": "# A card", "reference": {"data": "/srv/few", "of": "8/2"}},
        "versions": {"wedefense_nb": "0", "torch": "2"},
    }  # fmt: skip
    return Judgement(**(facts | changes))


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    """Four seconds: silence, and 2 kHz in the second half."""
    t = np.arange(4 * RATE) / RATE
    path = tmp_path_factory.mktemp("tone") / "voice.wav"
    sf.write(path, 0.3 * np.sin(2 * np.pi * 2000 * t) * (t > 2), RATE, subtype="PCM_16")
    return path


class Reader(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        self.texts.setdefault(self._open, []).append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


# Assumptions


@pytest.mark.parametrize("own", [(0.5, 1.0, 1.0), (0.025, 1.0, 10.0), (0.3, 7.0, 1e9), (1e-12, 1e-9, 3.0)])
def test_sliders_hold_what_python_would_compute(own):
    sliders = Sliders.around(*own)
    positions = (sliders.priors, sliders.costs_miss, sliders.costs_fa)
    assert tuple(x[n] for x, n in zip(positions, sliders.at, strict=True)) == own
    assert all((np.diff(x) > 0).all() for x in positions)
    for i, p in enumerate(sliders.priors):
        assert sliders.odds[i] == bayes_threshold(p, 1.0, 1.0)
        for j, miss in enumerate(sliders.costs_miss):
            for k, fa in enumerate(sliders.costs_fa):
                assert sliders.log_fa[i][k] - sliders.log_miss[i][j] == bayes_threshold(p, miss, fa)


def test_infinite_costs_are_numbers_that_json_knows():
    sliders = Sliders.around(0.5, 1.0, math.inf)
    assert "Infinity" not in json.dumps(sliders.log_fa) and sliders.log_fa[0][-1] > 1e300


@pytest.mark.parametrize(
    "p, text",
    [(0.0, "under 0.01 %"), (0.0001, "0.01 %"), (0.004, "0.40 %"), (0.125, "13 %"), (0.5, "50 %"),
     (0.9949, "99.49 %"), (1.0, "over 99.99 %")],
)  # fmt: skip
def test_a_share_is_never_quite_nothing_or_all(p, text):
    assert in_percent(p) == text


def test_an_llr_has_a_sign_unless_it_is_zero():
    assert [signed(x) for x in (3.456, -3.456, 0.0, -0.0049)] == ["+3.46", "−3.46", "0.00", "0.00"]


# What is drawn and heard


@pytest.mark.parametrize("total", [1, 399, 400, 5_000, 400_003])
def test_a_sketch_in_pieces_is_that_of_the_whole(total):
    rng = np.random.default_rng(total)
    wave = np.clip(0.3 * rng.normal(size=(2, total)), -1, 1).astype(np.float32)
    cuts = np.sort(rng.integers(0, total, 7))
    whole = sketch([wave], total)
    parts = sketch(np.split(wave, cuts, axis=1), total)
    assert np.array_equal(whole.low, parts.low) and np.array_equal(whole.high, parts.high)
    assert np.array_equal(whole.spectrum, parts.spectrum) and whole.sound == parts.sound
    assert whole.seconds == total / RATE and len(whole.low) == min(total, 800)
    assert whole.spectrum.shape[0] == 128 and whole.spectrum.shape[1] <= 800
    mono = wave.mean(axis=0)
    edges = [math.ceil(i * total / len(whole.low)) for i in range(len(whole.low) + 1)]
    for i in range(0, len(whole.low), 37):
        part = mono[edges[i] : edges[i + 1]]
        assert whole.low[i] == part.min() and whole.high[i] == part.max()


def test_a_tone_lies_where_it_sounds(tone):
    wave = decode(tone)[0]
    drawn = sketch([wave], wave.shape[1])
    middle = drawn.spectrum.shape[1] // 2
    assert abs(127 - 2000 / 62.5 - drawn.spectrum[:, middle + 5 :].mean(axis=1).argmax()) <= 1
    assert drawn.spectrum[:, : middle - 5].max() == 0 and drawn.spectrum.max() == 63
    assert drawn.high[: len(drawn.high) // 2].max() < 1e-3


def test_short_sounds_are_exact_long_ones_small_and_very_long_ones_left_out(monkeypatch, tmp_path):
    wave = (0.1 * np.random.default_rng(0).normal(size=(1, 3 * RATE))).astype(np.float32)
    (tmp_path / "a.flac").write_bytes(sketch([wave], wave.shape[1]).sound)
    assert np.abs(decode(tmp_path / "a.flac")[0] - wave).max() < 1e-4
    monkeypatch.setattr(report, "LOSSLESS", 2.0)
    small = sketch([wave], wave.shape[1])
    (tmp_path / "a.mp3").write_bytes(small.sound)
    assert small.kind == "audio/mpeg" and len(small.sound) < 4_500 * 3
    assert abs(decode(tmp_path / "a.mp3")[0].shape[1] / RATE - 3) < 0.15
    monkeypatch.setattr(report, "MOST_SECONDS", 2.5)
    assert sketch([wave], wave.shape[1]).sound == b""
    page = report_page(judged(), wave)
    assert "longer than" in page and 'type="file"' in page and "data:audio" not in page


# What a page says


def test_a_page_says_it_all_without_a_script(tone):
    own = judged(sha256=file_print(tone))
    page = Reader(report_page(own, tone, Localization(0.02, np.zeros(200), [(1.0, 1.5)], True)))
    text = " ".join(" ".join(found) for tag, found in page.texts.items() if tag not in ("script", "style"))
    text = re.sub(r"\s+", " ", text)
    words = [
        "REAL VOICE (bona fide)",
        "3.5 times as likely",
        "speaks weakly for a real voice",
        "voice.wav",
        "# A card",
    ]
    words += [
        own.sha256,
        "+1.25",
        "+0.50",
        "+2.00",
        "78 %",
        "22 %",
        "3.50 s",
        "up to 7.9 kHz",
        "the channels differ",
    ]
    words += [
        "1.00 to 1.50 s",
        "LLR of 3 windows, 1 of them below zero",
        "torch 2",
        "40 % of what is allowed",
    ]
    assert "/srv" not in text and "few" in text and "8/2" in text
    assert [word for word in words if word not in text] == [] and "/home" not in text and "ann" not in text.split()
    assert page.all("audio")[0]["src"].startswith("data:audio/flac;base64,")
    assert all(image["alt"] for image in page.all("img")) and page.all("html")[0]["lang"] == "en"
    pictures = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(pictures) == 5 and all(svg["aria-label"] for svg in pictures)
    for sliders in (attrs for _, attrs in page.tags if "needs-script" in (attrs.get("class") or "")):
        assert "hidden" in sliders


def test_the_json_in_a_page_is_the_judgement(tone):
    own = judged(sha256=file_print(tone), llr=math.nextafter(1.25, 2))
    page = Reader(report_page(own, tone, Localization(0.02, np.array([1.0, -math.inf]), [], False)))
    (link,) = [a["href"] for a in page.all("a") if "download" in a]
    content = json.loads(base64.b64decode(link.partition("base64,")[2]))
    known = json.loads(own.to_json())
    assert content["file"] == "voice.wav" and content["localization"]["llr"] == [1.0, None]
    known |= {"file": "voice.wav", "model": known["model"] | {"reference": {"data": "few", "of": "8/2"}}}
    assert {name: content[name] for name in known} == known


def test_nothing_comes_in_and_nothing_goes_out():  # pitfall 63
    """Names, cards and codecs are text, the policy allows this page's script only, and there are no addresses."""
    quality = Quality(4.0, 3.5, -20.0, -3.0, 40.0, 0.0, 7900.0, RATE, 1, NASTY, (NASTY,))
    model = {"name": NASTY, "folder": NASTY, "card": NASTY + "\ud800", "reference": {NASTY: NASTY}}
    own = judged(file=f"/in/{NASTY}", caveats=(NASTY,), quality=quality, model=model, channels={NASTY: 1.0})
    refused = judged(file=NASTY, decision=CANNOT_SAY, reasons=(NASTY,), quality=quality, model=model)
    index = index_page([Entry(f"a/{NASTY}", own, f"{NASTY}.html"), Entry(NASTY, error=NASTY)], NASTY)
    for text in (report_page(own, np.zeros(RATE)), report_page(refused), index):
        page = Reader(text)
        scripts = page.texts["script"]
        allowed = "'sha256-" + base64.b64encode(hashlib.sha256(scripts[-1].encode()).digest()).decode() + "'"
        (style,) = page.texts["style"]
        policy = page.all("meta")[1]["content"]
        assert policy.startswith("default-src 'none'") and f"script-src {allowed}" in policy
        assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
        assert len(page.all("script")) <= 2 and "{{ 7 * 7 }}" in text and "\u202e" not in text
        assert not any(key.startswith("on") or key == "style" for _, attrs in page.tags for key in attrs)
        assert all(image["src"].startswith("data:") for image in page.all("img"))
        for attrs in (a for _, a in page.tags):
            for key in ("src", "href"):
                assert not re.match(r"(\w+:)?//|javascript:|file:", attrs.get(key) or "")
        assert "://" not in text and "url(" not in style and "@import" not in style


def test_what_cannot_be_judged_is_a_state_of_its_own(tone):
    own = judged(decision=CANNOT_SAY, reasons=("it is silent", "it is short"), sha256=file_print(tone))
    page = report_page(own, tone, Localization(0.02, np.full(200, -3.0), [(0.0, 4.0)], True))
    assert "CANNOT BE JUDGED by this model" in page and "<li>it is silent</li>" in page
    assert "no sign that it is fake" in page and "data:audio" in page
    for word in ('type="range"', "REAL VOICE", "FAKE", "real +", "1.25", 'class="scale"', "localizer calls"):
        assert word not in page.partition("<script>")[0], word
    uncalibrated = judged(decision=CANNOT_SAY, llr=None, low=None, high=None, posterior=None, windows=())
    assert "CANNOT BE JUDGED" in report_page(uncalibrated)


def test_the_uncertain_caveat_is_kept_up_to_date_and_stands_once():
    predictor = object.__new__(Predictor)
    predictor.reference = None
    row = {"start": 0.0, "end": 1.0, "llr": 0.0, "counted": True}
    caveats = predictor._caveats("bonafide", -1.0, 2.0, 0.0, {}, [row])
    page = report_page(judged(low=-1.0, high=2.0, caveats=tuple(caveats)))
    body = page.partition("<script>")[0]
    assert body.count("decision is uncertain") == 1 and '<p class="unsure">' in body and "never met" in body
    assert '<p class="unsure" hidden>' in report_page(judged())
    without = report_page(judged(low=math.nan, high=math.nan))
    assert "95 % interval" not in without and "nan" not in without.partition("<script>")[0].lower().split()


def test_a_page_is_of_the_file_that_was_judged(tone, tmp_path):
    with pytest.raises(ValueError, match="not the file that was judged"):
        report_page(judged(), tone)
    made = make_report(judged())
    assert made.drawn is None and made.judgement.file == "voice.wav" and made.seconds == 4.0
    assert "The recording is not in this page" in report_page(judged())
    old = write_report(judged(), tmp_path / "new" / "a.html")
    before = old.read_text()
    with pytest.raises(ValueError, match="not the file"):
        write_report(judged(), old, tone)
    assert old.read_text() == before and [p.name for p in old.parent.iterdir()] == ["a.html"]


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.2, 5.0, 59.0, 119.0, 3600.0, 1e5])
def test_times_are_round_few_and_inside(seconds):
    ticks = report._ticks(seconds)
    assert len(ticks) <= 6 and all(0 < float(place) < 100 for place, _ in ticks)
    assert len({name for _, name in ticks}) == len(ticks)


def test_an_hour_has_no_more_shapes_than_a_minute():
    n = 3600
    rows = tuple({"start": float(i), "end": i + 2.0, "score": 0.0, "llr": math.sin(i), "counted": i % 2 == 0}
                 for i in range(n))  # fmt: skip
    quality = Quality(n + 1.0, 3.5, -20.0, -3.0, 40.0, 0.0, 7900.0, RATE, 1)
    page = report_page(
        judged(windows=rows, quality=quality), None, Localization(0.02, np.zeros(50 * n), [], False)
    )
    assert "the 100 lowest" in page and page.count("data-at=") == 100 and "Score (not calibrated)" in page


# Many


def test_names_of_pages_are_plain_and_belong_to_the_content():
    other = judged(file="/x/voice.wav", sha256="cd" * 32)
    assert page_name(judged()) == "voice.wav-abababab.html" != page_name(other)
    for name in (NASTY, "..", "a" * 300, "\u202e", "CON", "/", "ä/ü?*.wav"):
        assert re.fullmatch(r"[\w .+-]{1,80}-abababab\.html", page_name(judged(file=name)), re.ASCII)
    assert clean_name(r"C:\in\a.wav") == "a.wav"


def test_a_table_of_many_has_links_counts_and_keys_to_sort_by(tmp_path):
    fake = judged(decision="spoof", llr=-2.0, file="b.wav", posterior=0.1)
    unsure = judged(decision=CANNOT_SAY, reasons=("it is silent",), file="c.wav")
    entries = [
        Entry("sub/a b.wav", judged(), "a b.wav-1.html"),
        Entry("b.wav", fake, "b.html"),
        Entry("c.wav", unsure),
    ]
    path = write_index([*entries, Entry("d.wav", error="no sound")], tmp_path / "pages", "inbox")
    page = Reader(path.read_text(encoding="utf-8"))
    assert [a["href"] for a in page.all("a")] == ["a%20b.wav-1.html", "b.html"] and path.name == "index.html"
    assert "4 recordings: 1 not read, 1 fake, 1 cannot say, 1 real voice." in path.read_text(encoding="utf-8")
    keys = [td["data-key"] for td in page.all("td")]
    rows = [keys[n : n + 7] for n in range(0, len(keys), 7)]
    assert [row[1] for row in rows] == ["3", "1", "2", "0"]
    assert [row[2] for row in rows] == ["1.25", "-2.0", "", ""] and rows[2][6] == "it is silent"


# In a browser

ASK = """
const [i, j, k] = ['prior', 'miss', 'fa'].map((name) => document.getElementById(name));
const found = [];
for (i.value = 0; ; i.value = Number(i.value) + 1) {
  for (j.value = 0; ; j.value = Number(j.value) + 1) {
    for (k.value = 0; ; k.value = Number(k.value) + 1) {
      i.dispatchEvent(new Event('input'));
      found.push(document.querySelector('.verdict').dataset.decision === 'bonafide' ? 1 : 0);
      if (k.value === k.max) { break; }
    }
    if (j.value === j.max) { break; }
  }
  if (i.value === i.max) { break; }
}
document.getElementById('as-judged').click();
return found;
"""


def _texts(browser) -> list[str]:
    names = "['said-prior', 'said-miss', 'said-fa', 'threshold', 'p-real', 'p-fake']"
    return browser.execute_script(f"return {names}.map((x) => document.getElementById(x).textContent)")


def _names_of(browser) -> list[tuple[str, str]]:
    """Role and name of whatever a screen reader would announce."""
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]


@pytest.fixture
def quiet(browser):
    """A browser that must neither complain nor ask the network for anything."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.execute_cdp_cmd("Network.enable", {})
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", "blob:", "about:"))] != []
    assert all(url.startswith(("data:", "blob:", "file:")) for url in asked)
    files = {url.rpartition("/")[2].partition("?")[0] for url in asked if url.startswith("file:")}
    assert all(name.endswith(".html") for name in files), files


def test_a_page_in_a_browser(quiet, tone, tmp_path):
    """The verdict follows the sliders as in Python; a click, a key and a button play from a place."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    llr = bayes_threshold(0.3, 1.0, 10.0)  # on a threshold to the last bit, and beside others by rounding only
    own = judged(sha256=file_print(tone), llr=llr, low=llr - 1, high=llr + 0.7, file=f"/in/{NASTY}")
    page = write_report(own, tmp_path / "a.html", tone, Localization(0.02, np.zeros(200), [(1.0, 1.5)], True))
    quiet.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    quiet.get(page.as_uri())
    assert not quiet.find_element("id", "prior").is_displayed()
    assert quiet.find_element("css selector", ".word").text == "REAL VOICE (bona fide)"
    quiet.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    written = [quiet.find_element("id", x).get_attribute("textContent") for x in ("threshold", "p-real", "p-fake")]
    quiet.get(page.as_uri())
    wait = WebDriverWait(quiet, 10)
    assert _texts(quiet)[3:] == written and quiet.title == "REAL VOICE (bona fide): " + clean_name(NASTY)

    sliders = Sliders.around(own.p_spoof, own.c_miss, own.c_fa)
    grid = [(p, m, f) for p in sliders.priors for m in sliders.costs_miss for f in sliders.costs_fa]
    want = [int(decide([llr], *assumed)[0]) for assumed in grid]
    assert quiet.execute_script(ASK) == want and 0 < sum(want) < len(want)
    assert _texts(quiet)[3:] == written and not quiet.find_element("id", "as-judged").is_enabled()

    verdict = quiet.find_element("css selector", ".verdict")
    prior = quiet.find_element("id", "prior")
    moves = 0
    while verdict.get_attribute("data-decision") == "bonafide" and moves < 40:
        prior.send_keys(Keys.ARROW_RIGHT)
        moves += 1
    p = sliders.priors[sliders.at[0] + moves]
    assert 0 < moves < 40 and decide([llr], p, 1.0, 1.0)[0] != BONAFIDE
    assert quiet.find_element("css selector", ".word").text == "FAKE (spoof)"
    assert (
        _texts(quiet)[4] == in_percent(float(posterior(llr, p)))
        and prior.get_attribute("aria-valuetext") == f"{100 * p:g} %"
    )
    assert quiet.find_element("css selector", ".unsure").is_displayed()
    assert not quiet.find_element("id", "though-real").is_displayed()
    quiet.find_element("id", "as-judged").click()
    for _ in range(3):
        quiet.find_element("id", "fa").send_keys(Keys.ARROW_RIGHT)
    assert quiet.find_element("id", "though-real").is_displayed() == (posterior(llr, 0.5) > 0.5)
    assert decide([llr], 0.5, 1.0, 5.0)[0] != BONAFIDE

    state = "const a = document.querySelector('audio'); return [a.currentTime, a.paused, a.duration]"
    wait.until(lambda b: b.execute_script("return document.querySelector('audio').readyState > 0"))
    line = quiet.find_element("css selector", ".seek")
    quiet.execute_script("arguments[0].scrollIntoView({block: 'center'})", line)
    note = "window.at = []; const a = document.querySelector('audio'); a.loop = true;"  # a busy machine is late
    quiet.execute_script(f"{note} a.addEventListener('seeking', () => window.at.push(a.currentTime))")
    ActionChains(quiet).move_to_element_with_offset(line, round(line.size["width"] / 4), 0).click().perform()
    wait.until(lambda b: b.execute_script("return window.at.length"))
    assert abs(quiet.execute_script("return window.at[0]") - 3.0) < 0.05
    wait.until(lambda b: b.execute_script(state)[0] > 3.01)
    line.send_keys(Keys.SPACE)
    line.send_keys(Keys.HOME)
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.PAGE_UP, Keys.ARROW_LEFT):
        line.send_keys(key)
    at, paused, seconds = quiet.execute_script(state)
    assert paused and at == pytest.approx(1.1, abs=0.01) and seconds == pytest.approx(4.0, abs=0.01)
    assert line.get_attribute("aria-valuetext") == "1.10 seconds"
    quiet.find_element("css selector", ".places button").click()
    wait.until(lambda b: b.execute_script(state)[0] >= 1.0 and not b.execute_script(state)[1])
    named = _names_of(quiet)
    assert all(name for role, name in named if role in ("slider", "button", "image", "link", "region"))
    assert ("slider", "Fakes among such recordings") in named and ("button", "Play from 1.00 to 1.50 s") in named


def test_pages_fit_a_phone_sort_and_take_a_file(quiet, tone, tmp_path):
    own = judged(sha256=file_print(tone), file="b" * 90 + ".wav", caveats=("c" * 80,), llr=9.5, high=10.0)
    refused = judged(decision=CANNOT_SAY, reasons=("it is silent",), sha256=file_print(tone))
    line = Localization(0.02, np.zeros(200), [(1.0, 1.5)], True)
    entries = [Entry(own.file, own, "a.html"), Entry("a.wav", refused, "b.html"), Entry("c.wav", error="no sound")]
    entries.append(Entry("d.wav", judged(llr=-3.5, decision="spoof"), "b.html"))
    entries.append(Entry("e.wav", judged(llr=12.0)))
    index = write_index(entries, tmp_path, "inbox")
    pages = [
        write_report(own, tmp_path / "a.html", tone, line, "index.html"),
        write_report(refused, tmp_path / "b.html"),
    ]
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    for wide in (False, True):
        if not wide:
            quiet.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        for page in (*pages, index):
            quiet.get(page.as_uri())
            width = quiet.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
            assert width[0] <= width[1] and (wide or width[1] == 390), page.name
        quiet.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    order = "return [...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent[0]).join('')"
    for column, want in (("Recording", "abcde"), ("Recording", "edcba"), ("LLR", "dbe"), ("Decision", "cdabe")):
        head = next(th for th in quiet.find_elements("css selector", "th") if th.text.startswith(column))
        head.find_element("css selector", "button").click()
        found = quiet.execute_script(order)
        assert found[: len(want)] == want, (column, found)  # without a number: at the end
    assert head.get_attribute("aria-sort") == "ascending"
    quiet.find_element("css selector", "tbody a").click()
    quiet.find_element("id", "pick").send_keys(str(tone))
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(quiet, 10)
    wait.until(lambda b: b.find_element("id", "picked").text == "This is the file that was judged.")
    wait.until(
        lambda b: b.execute_script("return document.getElementById('sound').duration") == pytest.approx(4.0)
    )
    quiet.find_element("id", "pick").send_keys(str(index))
    wait.until(lambda b: "another file" in b.find_element("id", "picked").text)


def test_it_is_said_when_the_costs_decide():
    page = report_page(judged(decision="spoof", c_fa=10.0))
    assert '<p id="though-real">' in page and '<p id="though-fake" hidden>' in page
    page = report_page(judged(llr=-0.5, low=-1.0, high=0.1, c_miss=10.0))
    assert '<p id="though-real" hidden>' in page and '<p id="though-fake">' in page
    assert '<p id="though-real" hidden>' in report_page(judged())
