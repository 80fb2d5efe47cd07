"""Pictures, the player (its HTML read, and driven in Chromium), and tables of errors against plain counting."""

import base64
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest

from wedefense_nb.book import COLORS
from wedefense_nb.data.audio import decode
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.localization.metrics import PEEK, find_threshold, frame_rates, judge
from wedefense_nb.localization.timelines import (
    decided,
    error_by_attack,
    error_by_distance,
    error_by_length,
    gallery,
    in_words,
    page,
    player,
    plot_errors,
    plot_gallery,
    plot_timeline,
    recording_errors,
)

matplotlib.use("agg")
HOP = 0.02
FIVE = [1.0, -2.0, -1.0, 3.0, 2.0]


@pytest.fixture(autouse=True)
def closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def corpus(seed=0, n=12):
    """Random scores and truth: partial fakes of two attacks, whole fakes, real recordings; odd lengths."""
    rng = np.random.default_rng(seed)
    rows, parts, scores = [], [], {}
    for i in range(n):
        utt = f"u{i:02d}"
        samples = int(rng.integers(3000, 9000))
        kind = ("partial", "partial", "spoof", "real")[i % 4]
        label = "bonafide" if kind == "real" else "spoof"
        attack = "" if kind == "real" else "xy"[int(rng.integers(2))]
        row = dict(utt=utt, path="", label=label, split="eval", speaker="", attack=attack, codec="")
        rows.append(row | {"duration": samples / 16000, "sample_rate": 16000})
        if kind == "partial":
            cuts = np.sort(rng.choice(np.arange(1, samples), 4, replace=False)) / 16000
            edges = [0.0, *cuts, samples / 16000]
            for k, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
                fake = k % 2 == 1
                parts.append(
                    dict(
                        utt=utt, start=start, end=end, label="spoof" if fake else "bonafide", attack="x" * (k == 1)
                    )
                )
        scores[utt] = rng.normal(size=-(-samples // 320)).round(1)
    return scores, Manifest(pd.DataFrame(rows), pd.DataFrame(parts))


def per_sample(scores, truth, threshold):
    """By recording: fake and accepted for each sample, and the fake stretches (start, end, attack) in samples."""
    u = truth.utterances.set_index("utt")
    found = {}
    for utt, row in u.iterrows():
        samples = round(row.duration * 16000)
        own = truth.segments[(truth.segments.utt == utt) & (truth.segments.label == "spoof")]
        stretches = [
            (round(s.start * 16000), round(s.end * 16000), s.attack or row.attack) for s in own.itertuples()
        ]
        if row.label == "spoof" and utt not in set(truth.segments.utt):
            stretches = [(0, samples, row.attack)]
        fake = np.zeros(samples, dtype=bool)
        for start, end, _ in stretches:
            fake[start:end] = True
        found[utt] = fake, (np.repeat(scores[utt], 320) >= threshold)[:samples], stretches
    return found


# One recording


def test_five_frames_by_hand():
    assert decided(FIVE, HOP, 0.0, 1600).tolist() == [[0.02, 0.06]]
    assert decided(FIVE, HOP, -1.0, 1600).tolist() == [[0.02, 0.04]], "a score on the threshold is accepted"
    text = in_words(FIVE, HOP, 0.0, 1600, fakes=[[0.03, 0.08]], title="S1")
    assert text.startswith("S1, 0.10 s: called fake from 0.02 to 0.06 s.") and "70 % of the time is right" in text
    assert in_words(FIVE, HOP, -9.0, 1600) == "0.10 s: called fake nowhere."
    assert "100 %" in in_words(FIVE, HOP, 0.0, 1600, fakes=[[0.02, 0.04], [0.04, 0.06]])


def test_what_is_no_timeline_is_refused():  # pitfall 16
    with pytest.raises(ValueError, match="5 frames of 0.02 s where 6 cover it"):
        decided(FIVE, HOP, 0.0, 1601)
    assert decided(FIVE, HOP, 2.5, 1700, rest="repeat")[-1].tolist() == [0.08, 1700 / 16000]
    with pytest.raises(ValueError, match="NaN"):
        decided([1.0, np.nan, 1.0, 1.0, 1.0], HOP, 0.0, 1600)
    with pytest.raises(ValueError, match="NaN is not a threshold"):
        decided(FIVE, HOP, np.nan, 1600)
    with pytest.raises(ValueError, match="does not lie in the recording"):
        in_words(FIVE, HOP, 0.0, 1600, fakes=[[0.2, 0.3]])


def colours_of(ax):
    return {matplotlib.colors.to_hex(c) for patch in ax.collections for c in patch.get_colors()}


def test_the_picture_has_truth_and_decision_in_colour():
    wave = np.sin(np.arange(1600) / 5) * 0.3
    fig = plot_timeline(wave, FIVE, HOP, 0.0, [[0.03, 0.08]], title="S1")
    waveform, _, scores, strips = fig.axes
    assert colours_of(waveform) == set(COLORS.values())
    middles = np.array([segment[0, 0] for segment in waveform.collections[0].get_segments()])
    orange = [matplotlib.colors.to_hex(c) == COLORS["spoof"] for c in waveform.collections[0].get_colors()]
    assert np.allclose(middles[orange][[0, -1]], [0.03, 0.08], atol=0.001) and sum(orange) == 150
    assert [text.get_text() for text in strips.get_yticklabels()] == ["decision", "truth"]
    spans = [path.get_extents().intervalx.tolist() for c in strips.collections for path in c.get_paths()]
    assert np.allclose(spans, [[0, 0.1], [0.02, 0.06], [0, 0.1], [0.03, 0.08]])
    assert scores.get_lines()[0].get_ydata()[0] == 0.0 and scores.patches[0].get_data().values.tolist() == FIVE
    unknown = plot_timeline(wave, [np.inf, *FIVE[1:]], HOP, 0.0)
    assert colours_of(unknown.axes[0]) == {"#808080"} and len(unknown.axes[3].get_yticklabels()) == 1


# The player


class Reader(HTMLParser):
    """Elements with their attributes; all that is opened must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("path", "rect", "line", "meta", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert not self.open or self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def sound(seconds=2.0):
    time = np.arange(round(seconds * 16000)) / 16000
    return (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def a_player(seconds=2.0, title="S1", fakes=((0.5, 1.0),)):
    scores = np.where(np.arange(round(seconds / HOP)) < 30, 1.5, -0.5)
    return player(sound(seconds), scores, HOP, 0.0, fakes, title=title)


def test_the_player_is_whole_html_without_anything_from_outside():
    read = Reader(a_player().data)
    assert read.open == []
    (svg,) = read.all("svg")
    assert svg["role"] == "slider" and svg["tabindex"] == "0" and svg["aria-valuemax"] == "2.00"
    assert svg["aria-label"].startswith(
        "S1, 2.00 s: called fake from 0.60 to 2.00 s. In truth fake from 0.50 to 1.00"
    )
    links = [v for _, attrs in read.found for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
    assert len(links) == 1 and links[0].startswith("data:audio/mpeg;base64,")
    assert "http" not in a_player().data and "@import" not in a_player().data
    wave, rate = decode("x.mp3", base64.b64decode(links[0].partition(",")[2]))
    assert rate == 16000 and abs(len(np.atleast_2d(wave).T) - 32000) < 3000
    assert a_player().data == a_player().data, "no random names: notebooks stay as they are"


def test_the_strips_of_the_player_lie_where_truth_and_decision_do():
    rects = Reader(a_player().data).all("rect")
    got = [(r["y"], float(r["x"]), float(r["width"]), r["fill"]) for r in rects]
    blue, orange = COLORS["bonafide"], COLORS["spoof"]
    truth = [("166", 0.0, 1000.0, blue), ("166", 250.0, 250.0, orange)]
    assert got == [*truth, ("184", 0.0, 1000.0, blue), ("184", 300.0, 700.0, orange)]
    paths = Reader(a_player().data).all("path")
    assert [p["stroke"] for p in paths] == [blue, orange, "currentColor", "currentColor"]
    starts = [float(x) for x in re.findall(r"M(\S+) ", paths[1]["d"])]
    assert 250 <= min(starts) and max(starts) <= 500 and len(starts) == 75
    high, low = (float(y) for y in re.search(r"M0 (\S+?)H.*V(\S+)$", paths[2]["d"]).groups())
    assert (high, low) == (92.0, 158.0), "up is bona fide"
    assert len(Reader(a_player(fakes=None).data).all("rect")) == 2


def test_names_are_no_html():
    nasty = '<script>alert("x")</script>'
    data = page([a_player(title=nasty), "<p>two</p>"], title=nasty)
    assert nasty not in data and data.count("<script>") == 1 and "&lt;script&gt;" in data
    assert Reader(data).open == [] and data.startswith("<!DOCTYPE html>")


def test_infinite_scores_and_thresholds_are_drawn():
    for scores, value in (
        ([np.inf, -np.inf, 0.0, 1.0, 2.0], 0.0),
        (FIVE, np.inf),
        ([1.0] * 5, 1.0),
        ([np.inf] * 5, np.inf),
    ):
        data = player(sound(0.1), scores, HOP, value, title="S1").data
        assert "nan" not in data and "inf" not in data.replace("info", "")


def test_a_click_starts_the_player_there_and_keys_move_it(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    path = tmp_path / "page.html"
    path.write_text(
        page([a_player(), f'<div style="margin-left: 150px">{a_player().data}</div>']), encoding="utf-8"
    )
    browser.get(path.as_uri())
    wait = WebDriverWait(browser, 10)
    wait.until(
        lambda b: b.execute_script("return [...document.querySelectorAll('audio')].every(a => a.readyState > 0)")
    )

    def state(name, k=1):
        return browser.execute_script(f"return document.querySelectorAll('audio')[{k}].{name}")

    picture = browser.find_elements("css selector", "svg")[1]
    width = picture.size["width"]
    assert abs(state("duration") - 2.0) < 0.15 and state("paused") and state("currentTime") == 0
    note = "window.at = []; var audio = document.querySelectorAll('audio')[1];"
    browser.execute_script(f"{note} audio.addEventListener('seeking', () => window.at.push(audio.currentTime))")
    ActionChains(browser).move_to_element_with_offset(picture, -round(width / 4), 0).click().perform()
    wait.until(lambda b: b.execute_script("return window.at.length"))
    begun = browser.execute_script("return window.at[0]")
    assert abs(begun - 0.5) < 0.05 and not state("paused")
    wait.until(lambda b: state("currentTime") > begun)
    assert state("currentTime", 0) == 0 and state("paused", 0), "the other player is silent"

    def press(key):
        ActionChains(browser).send_keys(key).perform()

    press(Keys.SPACE)
    assert state("paused")
    press(Keys.HOME)
    assert state("currentTime") == 0
    for _ in range(3):
        press(Keys.ARROW_RIGHT)
    press(Keys.ARROW_LEFT)
    assert state("currentTime") == pytest.approx(0.2, abs=1e-3)
    wait.until(lambda b: picture.get_attribute("aria-valuenow") == "0.20")
    head = picture.find_element("css selector", ".head")
    assert float(head.get_attribute("x1")) == pytest.approx(100, abs=0.1)
    assert picture.get_attribute("aria-valuetext") == "0.20 seconds"
    errors = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in str(entry)
    ]
    assert errors == []


# Tables


@pytest.mark.parametrize("seed", range(4))
def test_errors_of_recordings_are_those_of_counted_samples(seed):
    scores, truth = corpus(seed)
    table = recording_errors(scores, truth, HOP, 0.1).set_index("utt")
    for utt, (fake, accepted, _) in per_sample(scores, truth, 0.1).items():
        row = table.loc[utt]
        assert np.isclose(row.missed, (fake & accepted).sum() / 16000, atol=1e-4)
        assert np.isclose(row.alarms, (~fake & ~accepted).sum() / 16000, atol=1e-4)
        assert np.isclose(row.fake, fake.sum() / 16000, atol=1e-4) and np.isclose(row.duration, len(fake) / 16000)
        assert np.isclose(row.error, (fake == accepted).mean(), atol=1e-3)
    assert table.error.is_monotonic_increasing


@pytest.mark.parametrize("seed", range(4))
def test_errors_by_length_and_attack_are_those_of_counted_samples(seed):
    scores, truth = corpus(seed)
    edges = (0.0, 0.05, 0.1, 0.3, np.inf)
    counted = per_sample(scores, truth, 0.1)
    table = error_by_length(scores, truth, HOP, 0.1, edges=edges, n=50)
    for k, row in enumerate(table.itertuples()):
        inside = [(accepted[a:b], utt) for utt, (_, accepted, all_) in counted.items() for a, b, _ in all_]
        inside = [(x, utt) for x, utt in inside if edges[k] <= len(x) / 16000 < edges[k + 1]]
        assert row.count == len(inside) and row.recordings == len({utt for _, utt in inside})
        if inside:
            whole = np.concatenate([x for x, _ in inside])
            assert np.isclose(row.error, whole.mean()) and np.isclose(row.seconds, len(whole) / 16000)
            assert row.low <= row.error <= row.high or row.recordings < 3
        else:
            assert np.isnan(row.error)
    table = error_by_attack(scores, truth, HOP, 0.1, n=50).set_index("name")
    assert table.index.tolist() == ["x", "y", "bona fide"]
    for attack in ("x", "y"):
        parts = [acc[a:b] for _, acc, all_ in counted.values() for a, b, which in all_ if which == attack]
        assert np.isclose(table.error[attack], np.concatenate(parts).mean()) and table["count"][attack] == len(
            parts
        )
    real = np.concatenate([~accepted[~fake] for fake, accepted, _ in counted.values()])
    assert np.isclose(table.error["bona fide"], real.mean(), atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_errors_by_distance_are_those_of_counted_frames(seed):
    scores, truth = corpus(seed)
    edges = (0.0, 0.03, 0.08, np.inf)
    sums = {(k, c): np.zeros(2) for k in range(3) for c in ("bonafide", "spoof")}
    for fake, accepted, _ in per_sample(scores, truth, 0.1).values():
        changes = np.flatnonzero(np.diff(fake)) + 1
        if len(changes) == 0:
            continue
        for start in range(0, len(fake), 320):
            here = slice(start, min(start + 320, len(fake)))
            distance = np.abs(changes - (here.start + here.stop) / 2).min() / 16000
            k = sum(distance >= edge for edge in edges) - 1
            for name, mine in (("bonafide", ~fake[here]), ("spoof", fake[here])):
                wrong = mine & (accepted[here] == (name == "spoof"))
                sums[k, name] += wrong.sum(), mine.sum()
    table = error_by_distance(scores, truth, HOP, 0.1, edges=edges, n=20)
    assert len(table) == 6
    for i, row in enumerate(table.itertuples()):
        wrong, total = sums[i // 2, row.label]
        assert np.isclose(row.seconds, total / 16000, atol=1e-3)
        assert np.isnan(row.error) if total == 0 else np.isclose(row.error, wrong / total, atol=1e-3)


def test_intervals_redraw_recordings_and_follow_the_seed():
    scores, truth = corpus(5, n=40)
    one = error_by_attack(scores, truth, HOP, 0.1, n=200, seed=1)
    pd.testing.assert_frame_equal(one, error_by_attack(scores, truth, HOP, 0.1, n=200, seed=1))
    assert not one.low.equals(error_by_attack(scores, truth, HOP, 0.1, n=200, seed=2).low)
    assert ((one.low < one.error) & (one.error < one.high)).all()
    many = error_by_attack(scores, truth, HOP, 0.1, n=2000).iloc[-1]
    errors = recording_errors(scores, truth, HOP, 0.1)
    rows = np.random.default_rng(0).integers(40, size=(2000, 40))
    alarms = errors.alarms.to_numpy()[rows].sum(1)
    bona = (errors.duration - errors.fake).to_numpy()[rows].sum(1)
    want = np.quantile(alarms / bona, [0.025, 0.975])
    assert np.allclose([many.low, many.high], want, atol=0.1 * np.diff(want)[0])


def test_judged_scores_give_the_same_tables():
    scores, truth = corpus()
    judged = judge(scores, truth, HOP)
    for table in (error_by_length, error_by_distance):
        pd.testing.assert_frame_equal(table(judged, threshold=0.1, n=9), table(scores, truth, HOP, 0.1, n=9))
    pd.testing.assert_frame_equal(error_by_attack(judged, truth, n=9), error_by_attack(scores, truth, HOP, n=9))
    with pytest.raises(ValueError, match="attacks stand in the truth"):
        error_by_attack(judged)


def test_a_threshold_of_the_same_recordings_is_refused():  # pitfall 13
    scores, truth = corpus()
    threshold = find_threshold(scores, truth, HOP)
    for measure in (recording_errors, error_by_length, error_by_distance, error_by_attack):
        with pytest.raises(ValueError, match="found on 12 of these recordings"):
            measure(scores, truth, HOP, threshold)
        measure(scores, truth, HOP, threshold, allow=PEEK)
    rates = frame_rates(scores, truth, HOP, threshold, allow=PEEK)
    assert 0 < rates["f1"] < 1


def test_ranges_must_rise_and_are_named():
    scores, truth = corpus()
    assert error_by_length(scores, truth, HOP, n=0).name.iloc[[0, -1]].tolist() == ["0–200 ms", "from 600 ms"]
    assert error_by_length(scores, truth, HOP, n=0).low.isna().all()
    for edges in ((0.0,), (0.0, 0.0), (0.2, 0.1)):
        with pytest.raises(ValueError, match="rising edges"):
            error_by_distance(scores, truth, HOP, edges=edges)


def test_attacks_without_a_name_are_unknown():
    scores, truth = corpus()
    u = truth.utterances.assign(attack="")
    table = error_by_attack(scores, Manifest(u, truth.segments.assign(attack="")), HOP, n=5)
    assert table.name.tolist() == ["unknown", "bona fide"]


# The gallery


def test_the_gallery_shows_best_middle_and_worst_once_each():
    errors = pd.DataFrame({"utt": list("abcdefg"), "error": np.arange(7) / 10})
    assert gallery(errors, 2).utt.tolist() == ["a", "b", "c", "d", "f", "g"]
    assert gallery(errors, 1).utt.tolist() == ["a", "d", "g"]
    assert gallery(errors, 2).place.tolist() == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    for n in (0, 3):
        with pytest.raises(ValueError, match="three places"):
            gallery(errors, n)


def test_the_gallery_is_drawn_for_every_recording():
    scores, truth = corpus()
    chosen = gallery(recording_errors(scores, truth, HOP, 0.1), 1)
    fig = plot_gallery(chosen, scores, truth, HOP, 0.1)
    assert len(fig.axes) == 6
    for (above, below), row in zip(np.reshape(fig.axes, (-1, 2)), chosen.itertuples(), strict=True):
        assert above.get_ylabel() == f"{row.place}\n{row.utt}"
        assert above.patches[0].get_data().values.tolist() == scores[row.utt].tolist()
        assert below.get_title() == f"error {100 * row.error:.0f} %"


def test_bars_have_counts_and_the_colours_of_their_class():
    scores, truth = corpus()
    for table in (error_by_attack(scores, truth, HOP, n=20), error_by_distance(scores, truth, HOP, n=20)):
        ax = plot_errors(table, "x")
        bars = ax.patches[: len(table)]
        for bar, row in zip(bars, table.itertuples(), strict=True):
            assert matplotlib.colors.to_hex(bar.get_facecolor()) == COLORS[row.label]
            assert np.isclose(bar.get_height(), 100 * row.error, equal_nan=True)
        assert [text.get_text() for text in ax.texts] == [str(n) for n in table["count"]]
