"""Interventions set what they are called after; who listens to silence is found, an honest detector is not."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wedefense_nb.book import COLORS
from wedefense_nb.data.audio import save
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.scores.calibration import AffineCalibration
from wedefense_nb.understanding.drift import TooFew
from wedefense_nb.understanding.interventions import (
    INTERVENTIONS,
    PLAN,
    distance,
    intervene,
    intervention_report,
    plot_interventions,
    set_band,
    set_lead,
    set_level,
    set_trail,
)
from wedefense_nb.understanding.shortcuts import silences, trivia

RATE = 16_000


class Listener(nn.Module):
    """A detector by hand: the score is what a function of a wave (T,) says."""

    def __init__(self, hears):
        super().__init__()
        self.hears = hears

    def forward(self, wave, lengths):
        scores = [self.hears(row[:n].numpy()) for row, n in zip(wave, lengths.tolist(), strict=True)]
        return torch.tensor(scores)

    def score(self, logits):
        return logits


def evidence(wave):
    """Energy around 3 kHz against that around 1 kHz: what only the fakes lack."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    near = [power[np.abs(hertz - middle) < 100].sum() for middle in (3000, 1000)]
    return float(np.log(near[0] / near[1]))


def lead(wave):
    return -10 * silences(wave, RATE)[0]


def unsure(wave):
    """Noise, the same for the same wave."""
    return 0.3 * float(np.sin(1e5 * np.abs(wave).sum()))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """Six speakers; fakes lack a tone, and begin with 0.3 s of digital silence."""
    rng = np.random.default_rng(0)
    folder, at = tmp_path_factory.mktemp("spoiled"), np.arange(8000) / RATE
    rows = []
    for i in range(24):
        label = ("bonafide", "spoof")[i % 2]
        tone = np.sin(2 * np.pi * 1000 * at) + (1.0 if label == "bonafide" else 0.3) * np.sin(
            2 * np.pi * 3000 * at
        )
        wave = 0.05 * (1 + rng.random()) * (tone + 0.3 * rng.normal(size=8000))
        wave = np.r_[np.zeros(4800 * (label == "spoof") + rng.integers(400)), wave].astype(np.float32)
        save(folder / f"u{i}.wav", wave)
        row = {"utt": f"u{i}", "path": f"u{i}.wav", "label": label, "split": "eval", "speaker": f"s{i // 4}"}
        rows.append(row | {"attack": "", "codec": "", "duration": len(wave) / RATE, "sample_rate": RATE})
    return Manifest(pd.DataFrame(rows), root=folder)


def asked(hears, manifest, **options):
    return intervene(Listener(hears), manifest, progress=False, **options)


def test_a_detector_that_listens_to_the_lead_is_found_by_name(spoiled):
    table = asked(lambda wave: lead(wave) + 0.1 * evidence(wave) + unsure(wave), spoiled)
    report = intervention_report(table, n=300)
    assert list(report.intervention) == list(PLAN)
    assert list(report[report.found].intervention) == ["lead 0 s", "lead 0.3 s"]
    rows = report.set_index("intervention")
    assert rows.spoof["lead 0 s"] > 2.5 and abs(rows.bonafide["lead 0 s"]) < 0.3
    assert rows.bonafide["lead 0.3 s"] < -2.5 and abs(rows.spoof["lead 0.3 s"]) < 0.3
    assert rows.moved["lead 0 s"] == pytest.approx(0.5, abs=0.05) and abs(rows.lost["level -26 dB"]) < 0.01
    ax = plot_interventions(table, report)
    colours = [text.get_color() for text in ax.get_yticklabels()]
    assert colours[:2] == [COLORS["spoof"]] * 2 and set(colours[2:]) == {"black"}


def test_an_honest_detector_is_not_accused(spoiled):
    report = intervention_report(asked(evidence, spoiled), n=300)
    assert not report.found.any() and report.lost.max() < 0.1 and report.auc.min() == 1.0


def test_who_moves_without_losing_is_not_accused(spoiled):
    """Sensitive to silence, but the same way for both classes."""
    report = intervention_report(asked(lambda x: evidence(x) - 9 * float(x[-160:].std() == 0), spoiled), n=200)
    assert report.set_index("intervention").moved["trail 0.3 s"] > 1 and not report.found.any()


@pytest.mark.parametrize("seconds", [0.0, 0.3])
@pytest.mark.parametrize(("change", "end"), [(set_lead, 0), (set_trail, 1)])
def test_silence_becomes_equal_at_one_end_only(change, end, seconds):
    found = []
    for before in (0, 1000, 9000):
        wave = np.r_[np.zeros(before), np.ones(4000), np.zeros(before)].astype(np.float32)
        changed = change(wave, seconds)
        ends = silences(changed, RATE)
        assert ends[1 - end] == silences(wave, RATE)[1 - end] and changed.dtype == np.float32
        found.append(ends[end])
    assert np.ptp(found) <= 0.011 and found[-1] == pytest.approx(seconds, abs=0.011)


def test_level_and_band_are_set_and_nothing_is_left_above():
    wave = (0.2 * np.random.default_rng(0).normal(size=16_000)).astype(np.float32)
    facts = trivia(set_level(wave, -30.0)[None], RATE)
    assert facts["level"] == pytest.approx(-30, abs=0.01)
    assert trivia(set_band(wave, 4000)[None], RATE)["above_4k"] < -60
    assert np.allclose(set_band(set_band(wave)), set_band(wave), atol=1e-6)
    assert np.isfinite(set_level(np.zeros(10, np.float32))).all() and np.abs(set_level(wave, 10.0)).max() == 1


def test_every_intervention_gives_a_wave_that_a_model_takes():
    wave = (0.1 * np.random.default_rng(0).normal(size=8000)).astype(np.float32)
    for name, options in PLAN.values():
        changed = INTERVENTIONS[name](wave, **options)
        assert changed.dtype == np.float32 and changed.ndim == 1 and torch.from_numpy(changed).isfinite().all()


@given(st.integers(0, 10**6))
def test_distance_is_the_one_of_the_books(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(2, size=10)]
    scores, weights = rng.normal(size=(14, 2)), rng.integers(1, 4, size=14)
    rows = np.repeat(np.arange(14), weights)
    bona, spoof = scores[rows][labels[rows] == 1], scores[rows][labels[rows] == 0]
    spread = np.sqrt((bona.var(axis=0) + spoof.var(axis=0)) / 2)
    assert np.allclose(distance(scores, labels, weights), (bona.mean(axis=0) - spoof.mean(axis=0)) / spread)
    assert np.allclose(distance(3 * scores + 5, labels), distance(scores, labels))


def made(rng, keeps: np.ndarray, speakers: int = 8, each: int = 12) -> pd.DataFrame:
    """A table in which each intervention keeps a share of the distance between the classes."""
    n = 2 * speakers * each
    bona = np.arange(n) % 2
    table = pd.DataFrame({"speaker": np.repeat(np.arange(speakers), n // speakers).astype(str)})
    table["label"] = np.where(bona, "bonafide", "spoof")
    noise = rng.normal(size=(n, len(keeps) + 1)) + rng.normal(size=(speakers, 1))[table.speaker.astype(int)] / 3
    scores = 3 * bona[:, None] * np.r_[1, keeps] + noise
    return pd.concat([table, pd.DataFrame(scores, columns=["before", *map(str, range(len(keeps)))])], axis=1)


def test_false_alarms_at_the_limit_are_as_rare_as_they_are_said_to_be():
    """Seven interventions, each of which takes exactly what an honest detector may lose: the worst case."""
    rng = np.random.default_rng(0)
    alarms = [intervention_report(made(rng, np.full(7, 0.75)), n=60).found.any() for _ in range(60)]
    assert np.mean(alarms) <= 0.1
    found = [intervention_report(made(rng, np.r_[0.2, np.ones(6)]), n=60).found for _ in range(10)]
    assert np.mean([one.iloc[0] for one in found]) > 0.9 and not any(one.iloc[1:].any() for one in found)


def test_who_has_more_than_enough_loses_nothing_by_less():
    """Ten standard deviations apart, then five: nobody is taken for anybody else."""
    rng = np.random.default_rng(0)
    table = made(rng, np.r_[0.5]).assign(before=lambda t: t.before * 0 + 10 * (t.label == "bonafide"))
    table = table.assign(before=table.before + rng.normal(size=len(table)), **{"0": lambda t: t.before / 2})
    table["0"] += rng.normal(size=len(table)) * 0.8
    assert intervention_report(table, n=50).lost[0] == 0.0


def test_p_values_are_adjusted_for_how_many_there_are():
    table = made(np.random.default_rng(1), np.r_[0.5, 0.5, 0.5])
    alone = [intervention_report(table[["speaker", "label", "before", name]]).p[0] for name in "012"]
    assert intervention_report(table).p.min() == pytest.approx(min(1, 3 * min(alone)), rel=1e-6)


def test_calibration_and_speakers(spoiled):
    calibration = AffineCalibration().fit([-1.0, 0.5, 0.0, 2.0], [0, 0, 1, 1])
    nameless = Manifest(spoiled.utterances.assign(speaker=""), root=spoiled.root)
    plan = {"quiet": ("level", {"decibels": -40})}
    plain, told = (
        asked(evidence, nameless, plan=plan),
        asked(evidence, nameless, plan=plan, calibration=calibration),
    )
    assert np.allclose(told.quiet, calibration.transform(plain.quiet)) and list(plain.speaker) == list(plain.utt)


def test_what_is_refused(spoiled):
    with pytest.raises(ValueError, match="nothing to do"):
        asked(evidence, spoiled, plan={})
    with pytest.raises(ValueError, match="unknown intervention 'pitch'"):
        asked(evidence, spoiled, plan={"a": ("pitch", {})})
    with pytest.raises(ValueError, match="option of intervention 'lead'"):
        asked(evidence, spoiled, plan={"a": ("lead", {"second": 1})})
    table = made(np.random.default_rng(0), np.ones(1))
    with pytest.raises(ValueError, match="nothing to lose"):
        intervention_report(table.assign(before=-table.before))
    with pytest.raises(ValueError, match="nothing to lose"):
        intervention_report(table.assign(before=1 + 1e-9 * table.before))
    with pytest.raises(TooFew, match="3 spoof groups|2 bona fide"):
        intervention_report(table[table.speaker.isin(["0", "1"])])


def test_speakers_are_drawn_and_not_their_recordings():
    """Two of four speakers lose everything: forty recordings of each do not make that a rule."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(320):
        speaker, label = i % 4, ("bonafide", "spoof")[i // 4 % 2]
        score = 3 * (label == "bonafide") + 0.5 * rng.normal()
        rows.append({"speaker": f"s{speaker}", "utt": f"u{i}", "label": label, "before": score})
        rows[-1]["gone"] = score + 3 * (label == "spoof" and speaker < 2)
    table = pd.DataFrame(rows)
    by_speaker, by_recording = (intervention_report(table, groups=by).iloc[0] for by in ("speaker", "utt"))
    assert by_speaker.lost == by_recording.lost > 0.6
    assert by_recording.found and not by_speaker.found
    assert by_speaker.high - by_speaker.low > 3 * (by_recording.high - by_recording.low)
