"""Distances from training data, what follows from them, and the files in which they travel."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import RandomForestClassifier

from wedefense_nb.data.audio import load
from wedefense_nb.models.detector import build, load_weights, save_weights
from wedefense_nb.understanding.embeddings import embed_all, embed_batch
from wedefense_nb.understanding.quality import SOUND, TEXTURE, Quality, measure_all
from wedefense_nb.understanding.reference import (
    Heaps,
    Reference,
    SpeechOrSound,
    hear_all,
    known_sounds,
    make_reference,
    risk_at,
    risk_coverage,
)

GOOD = Quality(3.0, 2.0, -25.0, -5.0, 30.0, 0.0, 7800.0, 16000, 1)


@pytest.fixture
def made() -> Reference:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(80, len(SOUND))), columns=SOUND)
    for name, value in (
        ("duration", 3.0),
        ("speech", 2.0),
        ("level", -25.0),
        ("snr", 30.0),
        ("bandwidth", 7800.0),
    ):
        table[name] = value + 0.1 * rng.normal(size=80)
    points = rng.normal(size=(80, 5))
    labels = np.arange(80) % 2
    points[labels == 1] += 20
    return make_reference((points, labels, table), (points, table), data="here")


@pytest.fixture(scope="module")
def listening() -> Reference:
    """With an opinion on what is speech, which here are numbers around 50."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(50 + rng.normal(size=(80, len(SOUND))), columns=SOUND)
    table = table.assign(duration=3.0, speech=2.0, level=-25.0, snr=30.0, bandwidth=7800.0)
    textures = 50 + rng.normal(size=(80, len(TEXTURE)))
    points = rng.normal(size=(80, 5))
    return make_reference((points, np.arange(80) % 2, table), (points, table), textures=(textures, textures))


def test_a_forest_doubts_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    speech, sounds, new = rng.normal(0, 1, (60, 4)), rng.normal(0.8, 2, (90, 4)), rng.normal(0, 2, (50, 4))
    forest = SpeechOrSound(trees=20, seed=3).fit(speech, sounds)
    both = np.concatenate([speech, sounds])
    right = RandomForestClassifier(20, max_depth=30, min_samples_leaf=2, random_state=3)
    right.fit(both, np.repeat([0, 1], [60, 90]))
    assert np.allclose(forest.doubt(new), right.predict_proba(new)[:, 1])
    assert np.allclose(forest.doubt(both), right.predict_proba(both)[:, 1]) and forest.doubt(new).std() > 0.1


def test_the_known_sounds_come_with_the_library():
    sounds = known_sounds()
    assert sounds.shape[1] == len(SOUND) + len(TEXTURE) and np.isfinite(sounds).all() and len(sounds) >= 1000


def test_what_is_no_speech_is_refused_with_the_reason(listening):
    facts = {name: 50.0 for name in SOUND}
    near = listening.distances(np.zeros(5), facts, np.full(len(TEXTURE), 50.0))
    assert set(near) == {"embedding", "sound", "speech"} and listening.reasons(GOOD, near) == []
    far = listening.distances(np.zeros(5), facts, known_sounds()[0, len(SOUND) :])
    assert far["speech"] > 1
    (reason,) = listening.reasons(GOOD, far | {"sound": 0.5})
    assert "something other than speech" in reason and "the doubt that is allowed" in reason
    assert "speech" not in listening.distances(np.zeros(5), facts)
    assert listening.notes["sounds"] == len(known_sounds())


def test_a_folder_keeps_what_is_speech_and_an_older_one_works_without(listening, made, tmp_path):
    listening.save(tmp_path)
    again = Reference.load(tmp_path)
    facts, texture = {name: 50.5 for name in SOUND}, known_sounds()[1, len(SOUND) :]
    assert again.distances(np.zeros(5), facts, texture) == listening.distances(np.zeros(5), facts, texture)
    content = json.loads((tmp_path / "reference.json").read_text())
    (tmp_path / "reference.json").write_text(json.dumps(content | {"texture": ["x"]}))
    with pytest.raises(ValueError, match="made with other facts"):
        Reference.load(tmp_path)
    made.save(tmp_path)
    old = Reference.load(tmp_path)
    assert old.speech is None and set(old.distances(np.zeros(5), facts, texture)) == {"embedding", "sound"}


@pytest.mark.parametrize(
    "name, changed",
    [
        ("left", lambda x: x - 2),
        ("right", lambda x: x + len(x)),
        ("feature", lambda x: x + 88),
        ("roots", lambda x: x + 10**6),
        ("roots", lambda x: x[:0]),
        ("threshold", lambda x: x[:-1]),
        ("share", lambda x: x + 2),
        ("left", lambda x: x.double()),
        ("feature", lambda x: x[None]),
        ("share", None),
    ],
)
def test_trees_that_lead_nowhere_are_refused(listening, tmp_path, name, changed):
    listening.save(tmp_path)
    arrays = load_weights(tmp_path / "reference.safetensors")
    value = arrays.pop(f"speech.{name}")
    arrays |= {f"speech.{name}": changed(value)} if changed else {}
    save_weights(arrays, tmp_path / "reference.safetensors")
    with pytest.raises(ValueError, match="not a reference"):
        Reference.load(tmp_path)


def test_trees_that_go_round_in_circles_come_to_an_end(listening, tmp_path):
    listening.save(tmp_path)
    arrays = load_weights(tmp_path / "reference.safetensors")
    for name in ("left", "right"):
        arrays[f"speech.{name}"] = torch.zeros_like(arrays[f"speech.{name}"])
    save_weights(arrays, tmp_path / "reference.safetensors")
    doubt = Reference.load(tmp_path).speech.doubt(known_sounds()[:3])
    assert np.isfinite(doubt).all() and ((doubt >= 0) & (doubt <= 1)).all()


def test_distances_are_those_of_the_nearest_heap():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, 3)) + 10 * y[:, None]
    heaps = Heaps().fit(x, y)
    other = rng.normal(size=(7, 3)) * 8
    want = [min(mahalanobis(p, m, heaps.precision_) for m in heaps.means_) for p in other]
    assert np.allclose(heaps.distance(other), want)
    around = x - heaps.means_[y]
    scale = around.std(axis=0)
    assert np.allclose(
        heaps.precision_ * np.outer(scale, scale), LedoitWolf(assume_centered=True).fit(around / scale).precision_
    )


def test_units_do_not_matter():
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(50, 3)), rng.normal(size=(5, 3))
    scale = np.array([1.0, 1000.0, 0.001])
    assert np.allclose(Heaps().fit(x).distance(other), Heaps().fit(x * scale).distance(other * scale), rtol=1e-4)


def test_a_dimension_that_never_varies_does_no_harm():
    x = np.c_[np.random.default_rng(0).normal(size=20), np.ones(20)]
    assert np.isfinite(Heaps().fit(x).distance(x)).all()


@pytest.mark.parametrize("x", [np.zeros((1, 3)), np.zeros(5), np.full((4, 2), np.nan)])
def test_points_that_cannot_be_used_are_refused(x):
    with pytest.raises(ValueError, match="a reference needs two points"):
        Heaps().fit(x)


def test_limits_are_quantiles_of_dev(made):
    inside = {name: 0.0 for name in SOUND}
    assert made.reasons(GOOD, made.distances(np.zeros(5), inside)) == []
    assert made.reasons(GOOD, made.distances(np.full(5, 20.0), inside)) == []
    (far,) = made.reasons(GOOD, made.distances(np.full(5, 10.0), inside))
    assert "the model has met nothing like it" in far
    (far,) = made.reasons(GOOD, made.distances(np.zeros(5), {name: 9.0 for name in SOUND}))
    assert "does not sound like the speech" in far
    with pytest.raises(ValueError, match="share of dev"):
        make_reference((np.zeros((4, 2)), np.arange(4) % 2, None), (None, None), outside=1.0)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"speech": 0.3}, "0.3 s of speech"),
        ({"level": -60.0}, "too quiet"),
        ({"bandwidth": 1500.0}, "ends too low"),
        ({"level": -120.0, "speech": 0.0}, "it is silent"),
    ],
)
def test_what_is_short_quiet_or_dull_is_refused_with_the_reason(made, changed, said):
    quality = Quality(**(vars(GOOD) | changed))
    reasons = made.reasons(quality, {"sound": 0.1, "embedding": 0.1})
    assert len(reasons) == 1 and said in reasons[0]


def test_files_hold_everything_and_damage_is_noticed(made, tmp_path):
    made.save(tmp_path)
    again = Reference.load(tmp_path)
    point = np.random.default_rng(1).normal(size=5)
    facts = {name: 0.5 for name in SOUND}
    assert again.distances(point, facts) == pytest.approx(made.distances(point, facts))
    assert (again.limits, again.least) == (made.limits, made.least) and again.notes["data"] == "here"
    content = json.loads((tmp_path / "reference.json").read_text())
    for wrong in ({"limits": {"embedding": 0, "sound": 1}}, {"least": {}}, {"sound": ["x"]}, {"limits": None}):
        (tmp_path / "reference.json").write_text(json.dumps(content | wrong))
        with pytest.raises(ValueError, match="not a reference"):
            Reference.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="wedefense-nb reference"):
        Reference.load(tmp_path / "nowhere")


@pytest.mark.parametrize("batch_size, seconds", [(4, 120.0), (16, 2.0)])
def test_one_reading_gives_what_three_gave(few, batch_size, seconds):
    part = few.subset(utt=list(few.utterances.utt[:9]))
    model = build("bands").train()
    heard = hear_all(model, part, halves=True, batch_size=batch_size, batch_seconds=seconds, progress=False)
    assert model.training
    points, scores = embed_all(model, part, progress=False)
    assert np.allclose(heard.points, points, atol=1e-4) and np.allclose(heard.scores, scores, atol=1e-4)
    assert heard.facts.equals(measure_all(part))
    assert heard.textures.shape == (9, len(TEXTURE)) and len(np.unique(heard.textures[:, 0])) == 9
    for path, (first, second) in zip(part.paths(), heard.halves, strict=True):
        wave = torch.from_numpy(load(path)[0])
        middle = len(wave) // 2
        for half, got in ((wave[:middle], first), (wave[middle : 2 * middle], second)):
            want = model.eval().score(model(half[None], torch.tensor([middle])))
            assert float(want.detach()) == pytest.approx(got, abs=1e-4)


def test_of_long_recordings_only_the_beginning_is_heard(few):
    part = few.subset(utt=list(few.utterances.utt[:3]))
    model = build("bands")
    heard = hear_all(model, part, longest=0.5, progress=False)
    assert (heard.facts.duration == 0.5).all() and len(heard.halves) == 0
    wave = torch.from_numpy(load(next(iter(part.paths())))[0][:8000])[None]
    assert np.allclose(
        heard.points[0], embed_batch(model.eval(), wave, torch.tensor([8000]))[0].detach(), atol=1e-4
    )


def test_risk_and_coverage_are_counted_as_by_hand():
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 6, 40).astype(float)
    wrong = rng.random(40) < 0.3
    curve = risk_coverage(confidence, wrong)
    assert len(curve) == len(np.unique(confidence))
    for row, least in zip(curve.itertuples(), np.unique(confidence)[::-1], strict=True):
        kept = confidence >= least
        assert row.coverage == pytest.approx(kept.mean()) and row.risk == pytest.approx(wrong[kept].mean())
    assert risk_at(curve, 1.0) == pytest.approx(wrong.mean())
    refused = np.where(np.arange(40) < 10, -np.inf, confidence)
    assert risk_coverage(refused, wrong).coverage.iloc[-2] == pytest.approx(0.75)
    for bad in (([], []), ([1.0], [True, False]), ([np.nan], [True])):
        with pytest.raises(ValueError, match="need a confidence"):
            risk_coverage(*bad)
    with pytest.raises(ValueError, match="share above 0"):
        risk_at(curve, 0.0)


def test_as_much_of_dev_lies_outside_as_was_asked_for():
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.normal(size=(300, len(SOUND))), columns=SOUND)
    table = table.assign(duration=3.0, speech=2.0, level=-25.0, snr=30.0, bandwidth=7800.0)
    points = rng.normal(size=(300, 4))
    made = make_reference((points, np.arange(300) % 2, table), (points, table), outside=0.1)
    far = np.array(
        [list(made.distances(p, f).values()) for p, f in zip(points, table.to_dict("records"), strict=True)]
    )
    assert np.allclose((far > 1).mean(axis=0), 0.1, atol=0.005)
