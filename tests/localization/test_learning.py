"""Localizers learn frames on their own grid, are believed by dev, and are never told that a cut is a fake."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chi2_contingency, ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from wedefense_nb.augmentation.policies import make_policy
from wedefense_nb.augmentation.transforms import Chain, changing_loader
from wedefense_nb.data.audio import save
from wedefense_nb.data.batches import AudioDataset, Batch, collate, epoch_batches
from wedefense_nb.data.crops import Crop, Item
from wedefense_nb.data.forge import VOCODERS
from wedefense_nb.data.manifest import Manifest, from_folder
from wedefense_nb.localization import learning
from wedefense_nb.localization.frames import manifest_labels
from wedefense_nb.localization.learning import (
    VALIDATIONS,
    Localization,
    Shelf,
    Splices,
    draw_cut,
    fake_runs,
    fully_fake,
    in_samples,
    makes_fakes,
    recording_scores,
    refined_proposals,
    train_refiner,
    with_folders,
)
from wedefense_nb.localization.localizers import AsDetector, localize
from wedefense_nb.localization.metrics import point_eer
from wedefense_nb.metrics import eer
from wedefense_nb.models.detector import build
from wedefense_nb.task import BONAFIDE, SPOOF, label_ids
from wedefense_nb.training.loop import FitConfig, fit
from wedefense_nb.training.scoring import score

NONE = np.zeros((0, 2))
SMALL = {
    "frame_linear": {"front_options": {"n_mels": 20}},
    "frame_res1d": {"front_options": {"n_mels": 20}},
    "frame_lcnn_lstm": {},
    "multi_gmlp": {"scales": [1, 4], "blocks": 1},
    "bam": {"embed_dim": 16, "width": 4},
    "bam_legacy": {"embed_dim": 80, "width": 4, "legacy": True},
    "tdl": {"width": 16},
    "cfprf": {"width": 8, "channels": [4, 8]},
    "sliding_window": {"detector": "bands", "hop": 0.2, "seconds": 0.4},
}


def small(name="frame_linear", **options):
    torch.manual_seed(1)
    return build(name.removesuffix("_legacy"), **SMALL[name] | options)


def sounds(*items):
    """A batch of noise: (seconds, label, fakes) of each."""
    rng = np.random.default_rng(5)
    made = []
    for i, (seconds, label, fakes) in enumerate(items):
        wave = rng.normal(size=round(seconds * 16000)).astype(np.float32) / 9
        made.append(Item(f"u{i}", wave, label, np.array(fakes, dtype=float).reshape(-1, 2)))
    return collate(made)


@pytest.fixture
def batch():
    return sounds((1.0, SPOOF, [[0.3, 0.7]]), (0.6, BONAFIDE, []), (0.8, SPOOF, []))


@pytest.fixture(scope="module")
def parts(samples):
    """A few recordings of train and of dev, all kinds among them."""
    chosen = []
    for split in ("train", "dev"):
        some = samples.subset(split=split)
        u = some.utterances
        utts = u.groupby(["kind", "label"]).head(4).utt
        chosen.append(some.subset(utt=utts))
    return chosen


# Labels and loss


@pytest.mark.parametrize("name", SMALL)
def test_labels_stand_on_the_models_own_grid(name, batch):  # pitfall 16
    model = small(name)
    labels = Localization(model, FitConfig()).labels(batch)
    logits, frames = model.eval()(batch.wave, batch.lengths)
    assert labels.shape == (3, int(frames.max()))
    for row in range(3):
        for i in range(labels.shape[1]):
            start, end = i * model.hop, min((i + 1) * model.hop, int(batch.lengths[row]) / 16000)
            wanted = -1
            if i < frames[row] and end - start > 1e-9:
                fake = (start < 0.7 - 1e-9 and end > 0.3 + 1e-9) if row == 0 else row == 2
                wanted = SPOOF if fake else BONAFIDE
            assert labels[row, i] == wanted, (row, i)


@pytest.mark.parametrize("name", SMALL)
def test_every_localizer_learns_by_its_own_loss(name, batch):
    model = small(name).train()
    objective = Localization(model, FitConfig(class_weights=(1.0, 3.0)))
    torch.manual_seed(0)
    loss = objective(batch)
    torch.manual_seed(0)
    again = model.loss(batch.wave, batch.lengths, objective.labels(batch), torch.tensor([1.0, 3.0]))
    assert torch.equal(loss, again)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_padding_is_never_learned(name, batch):  # pitfall 17
    objective = Localization(small(name), FitConfig()).eval()
    wider = replace(batch, wave=torch.nn.functional.pad(batch.wave, (0, 5000)))
    assert torch.equal(objective.labels(wider), objective.labels(batch))
    assert torch.equal(objective.seen(wider), objective.seen(batch))
    assert torch.allclose(objective(wider), objective(batch), rtol=1e-5)


def test_the_rule_is_that_of_the_labels(batch):
    one = sounds((0.16, SPOOF, [[0.0, 0.03]]))
    model = small("tdl")
    assert Localization(model, FitConfig(), rule="any").labels(one).tolist() == [[0, 1]]
    assert Localization(model, FitConfig(), rule="majority").labels(one).tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="unknown label rule 'al'"):
        Localization(model, FitConfig(), rule="al")


def test_stored_features_have_lengths_in_frames():
    features = Batch(
        torch.zeros(2, 5, 8),
        torch.tensor([5, 2]),
        torch.tensor([0, 0]),
        ["a", "b"],
        [np.array([[0.02, 0.06]]), NONE],
    )
    model = build("frame_linear", upstream={"stored": {"dim": 8, "states": 0}})
    labels = Localization(model, FitConfig()).labels(features)
    assert labels.tolist() == [[1, 0, 0, 1, 1], [0, 0, -1, -1, -1]]
    late = Batch(features.wave, features.lengths, features.labels, features.utts, [np.array([[0.5, 0.6]]), NONE])
    assert in_samples(late, 320).fakes[0].tolist() == [[0.1, 0.1]]
    assert Localization(model, FitConfig()).labels(late)[0].tolist() == [1] * 5
    waves = sounds((0.1, SPOOF, []))
    assert in_samples(waves, 320) is waves


def test_recordings_join_with_their_share(batch):
    model = small(utterance="learned").eval()
    alone = Localization(model, FitConfig())(batch)
    jointly = Localization(model, FitConfig(), share=0.25)(batch)
    scores = model.utterance_score(*model(batch.wave, batch.lengths))
    whole = torch.nn.functional.softplus(torch.where(batch.labels == BONAFIDE, -scores, scores)).mean()
    assert torch.isclose(jointly, 0.75 * alone + 0.25 * whole)
    jointly.backward()
    assert model.utterance.log_temperature.grad != 0
    for odd in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share is"):
            Localization(model, FitConfig(), share=odd)


def test_strips_are_covered_in_training_only(batch, parts):
    policy = make_policy("specaugment", parts[0], seed=0)
    policy.masks.p = 1.0
    objective = Localization(small(), FitConfig(), policy).train()
    losses = [objective(batch, epoch).item() for epoch in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    objective.eval()
    assert objective(batch, 0) == objective(batch, 1)


# Prior and balance


def test_the_prior_is_that_of_frames_as_the_loss_saw_them(batch):
    objective = Localization(small(), FitConfig(class_weights=(1.0, 2.0)))
    seen = objective.seen(batch)
    labels = objective.labels(batch)
    assert seen.tolist() == [int((labels == 0).sum()), int((labels == 1).sum())] and labels.min() == -1
    objective.finish(torch.tensor([300, 100]))
    assert float(objective.model.log_prior_odds) == pytest.approx(math.log(200 / 300))


def test_balance_weighs_frames_not_recordings(parts):
    train = parts[0]
    objective = Localization(small(), FitConfig(class_weights=(1.0, 3.0)), balance=True)
    objective.check(train)
    labels = np.concatenate(list(manifest_labels(train, 0.01).values()))
    n = np.bincount(labels)
    assert objective.weights.tolist() == pytest.approx([len(labels) / 2 / n[0], 3 * len(labels) / 2 / n[1]])
    with pytest.raises(ValueError, match="balance needs frames of both classes"):
        objective._balance(np.zeros(4, dtype=int))


# Refusals


def test_what_cannot_be_learned_from_is_refused(parts):
    train = parts[0]
    objective = Localization(small(), FitConfig())
    objective.check(train)
    with pytest.raises(ValueError, match="no partial fakes.*splices"):
        objective.check(train.subset(kind="full"))
    unlabelled = Manifest(train.utterances.assign(label="", attack=""), root=train.root)
    with pytest.raises(ValueError, match="have no label"):
        objective.check(unlabelled)
    with pytest.raises(ValueError, match="no bonafide recordings"):
        objective.check(train.subset(label="spoof"))
    with pytest.raises(ValueError, match="no bonafide recordings"):
        objective.check_dev(parts[1].subset(label="spoof"))
    kept = Localization(small(), FitConfig(crop_label="keep"))
    with pytest.raises(ValueError, match="crop_label='keep' is not for localizers"):
        kept.check(train)
    Localization(small(), FitConfig(crop=None, crop_label="keep")).check(train)  # nothing is cropped


def test_real_speech_is_enough_where_fakes_are_made(parts):
    real = parts[0].subset(label="bonafide")
    policy = make_policy("splices+specaugment", real)
    assert (
        makes_fakes(policy.change) and not makes_fakes(make_policy("speed", real).change) and not makes_fakes(None)
    )
    assert makes_fakes(Chain(Chain(Splices())))
    Localization(small(), FitConfig(), policy).check(real)
    with pytest.raises(ValueError):
        Localization(small(), FitConfig(), make_policy("speed", real)).check(real)


# What is believed


def test_validations_are_those_of_the_whole_dev_set(parts, monkeypatch):
    dev = parts[1]
    model = small(utterance="soft_min").train()
    config = FitConfig(batch_size=3)
    found = {name: VALIDATIONS[name](model, dev, config) for name in VALIDATIONS}
    assert model.training
    scores = localize(model, dev, progress=False)
    assert found["frame_eer"] == point_eer(scores, dev, model.hop)
    truth = manifest_labels(dev, model.hop)
    flat = np.concatenate([scores[utt] for utt in truth])
    labels = np.concatenate(list(truth.values()))
    best = 0
    for value in np.unique(flat):
        called = flat <= value
        best = max(best, 2 * (called & (labels == 0)).sum() / (called.sum() + (labels == 0).sum()))
    assert found["frame_f1"] == pytest.approx(1 - best, abs=1e-9)
    table = score(AsDetector(model), dev, progress=False)
    assert found["recording_eer"] == pytest.approx(eer(table.score, label_ids(table.label)), abs=0.02)
    assert found["both_eer"] == pytest.approx((found["frame_eer"] + found["recording_eer"]) / 2)


def test_recordings_are_scored_by_the_models_rule():
    rows = {"a": np.array([1.0, -2.0], np.float32), "b": np.array([3.0], np.float32)}
    assert recording_scores(small(utterance="min"), rows) == {"a": -2.0, "b": 3.0}
    assert recording_scores(small(utterance="mean"), rows) == {"a": -0.5, "b": 3.0}


def test_a_training_is_chosen_by_dev_and_repeats_itself(parts, tmp_path):
    config = FitConfig(epochs=2, batch_size=4, crop=0.5, lr=0.01, average=1, augment="splices")
    learner = partial(Localization, share=0.3, balance=True)
    model = small("tdl", utterance="learned")
    first = fit(model, *parts, config, learner, learning.dev_both_eer, tmp_path / "a")
    assert list(first.history.columns) == ["epoch", "train_loss", "dev_both_eer", "lr"]
    assert first.dev_error == first.history.dev_both_eer.min() and float(model.log_prior_odds) != 0
    again = fit(small("tdl", utterance="learned"), *parts, config, learner, learning.dev_both_eer, tmp_path / "b")
    pd.testing.assert_frame_equal(first.history, again.history)
    with pytest.raises(ValueError, match="objective share: 0.3 before, 0.0 now"):
        fit(small("tdl", utterance="learned"), *parts, config, Localization, learning.dev_both_eer, tmp_path / "a")


# Fakes on the fly


def spliced(batch, epoch=0, **options):
    return Splices(**{"p": 1.0, "vocoders": ("lpc",)} | options)(batch, epoch)


def test_splices_are_a_function_of_seed_epoch_and_utt(parts):
    real = parts[0].subset(label="bonafide")
    data = AudioDataset(real, Crop(0.5))
    change = make_policy("splices", real, seed=3).change

    def waves(size, epoch, workers=0):
        plan = [[(epoch, i) for _, i in keys] for keys in epoch_batches(real, size)]
        found = {}
        for batch in changing_loader(data, plan, workers, change, epoch):
            for i, utt in enumerate(batch.utts):
                found[utt] = (
                    int(batch.labels[i]),
                    batch.fakes[i].tolist(),
                    batch.wave[i, : batch.lengths[i]].tolist(),
                )
        return found

    assert waves(2, 5) == waves(7, 5) == waves(3, 5, workers=1)
    assert waves(2, 5) != waves(2, 6)


def test_samples_outside_the_stretches_are_untouched_and_labels_follow():
    fakes = controls = 0
    for epoch in range(40):
        batch = sounds((0.7, BONAFIDE, []), (0.5, SPOOF, [[0.1, 0.2]]))
        changed = spliced(batch, epoch)
        assert torch.equal(changed.wave[1], batch.wave[1]) and changed.fakes[1].tolist() == [[0.1, 0.2]]
        assert torch.equal(changed.lengths, batch.lengths)
        same = (changed.wave[0] == batch.wave[0]).numpy()
        assert not same.all()
        if changed.labels[0] == SPOOF:
            fakes += 1
            inside = np.zeros(len(same), dtype=bool)
            for start, end in np.round(changed.fakes[0] * 16000).astype(int):
                inside[start:end] = True
            assert same[~inside].all() and same[inside].mean() < 0.05
        else:
            controls += 1
            assert len(changed.fakes[0]) == 0
    assert fakes + controls == 40 and 10 <= fakes <= 30  # as many as fair coins give


def test_a_cut_lies_inside_and_apart():
    for seed in range(300):
        total = 3000 + 37 * seed
        cut = draw_cut(total, np.random.default_rng(seed), most=3)
        flat = [x for span in cut.spans for x in span]
        assert flat == sorted(flat) and 0 <= flat[0] and flat[-1] <= total and 1 <= len(cut.spans) <= 3
        for start, end in cut.spans:
            assert end - start >= 0.08 * 16000 or cut.spans == [(total // 3, 2 * total // 3)]
        assert cut.fade in (0, 80, 160) and 0 <= cut.shift <= max(total, 320)
    with pytest.raises(ValueError, match="a vocoder at least, or fakes from disk"):
        Splices(vocoders=())
    with pytest.raises(ValueError, match="unknown vocoder"):
        for epoch in range(20):
            spliced(sounds((0.5, BONAFIDE, [])), epoch, vocoders=("lcp",))


def probe(positive, negative):
    """Cross-validated AUC of a linear probe, in distance from chance."""
    x = np.concatenate([positive, negative])
    y = np.repeat([1, 0], [len(positive), len(negative)])
    scores = cross_val_predict(LogisticRegression(), x, y, cv=10, method="predict_proba")[:, 1]
    return 0.5 + abs(0.5 - (1 - eer(scores, y)))


def artefacts(wave, at):
    """What a cut leaves behind in the waveform: steps, bends and a change of level."""
    near = wave[at - 160 : at + 160]
    steps = np.abs(np.diff(near)) + 1e-5
    bends = np.abs(np.diff(near, n=2)) + 1e-5
    before, behind = np.square(near[:160]).mean() + 1e-8, np.square(near[160:]).mean() + 1e-8
    return [
        np.log(steps[159] / steps.mean()),
        np.log(bends[158:160].max() / bends.mean()),
        np.log(bends.max() / bends.mean()),
        np.log(before / behind),
        abs(np.log(before / behind)),
    ]


def test_a_splice_alone_gives_nothing_away(samples, monkeypatch):
    """With a vocoder that changes nothing, all that is left of a fake is its cuts: those of controls."""
    real = samples.subset(split="train", label="bonafide", kind="full")
    drawn = []
    monkeypatch.setattr(learning, "draw_cut", lambda *a, **k: drawn.append(draw_cut(*a, **k)) or drawn[-1])
    monkeypatch.setitem(VOCODERS._found, "nothing", lambda wave, rng: wave)
    found = {SPOOF: [], BONAFIDE: [], "untouched": []}
    data = AudioDataset(real)
    change = Splices(1.0, ("nothing",))
    for i in range(len(real)):
        batch = collate([data[0, i]])
        for epoch in range(4):
            changed = change(batch, epoch)
            wave = changed.wave[0].numpy()
            for at in (x for span in drawn[-1].spans for x in span):
                if 160 <= at < len(wave) - 160:
                    found[int(changed.labels[0])].append(artefacts(wave, at))
                    found["untouched"].append(artefacts(batch.wave[0].numpy(), at))
    assert min(len(found[SPOOF]), len(found[BONAFIDE])) > 300
    assert probe(found[SPOOF], found[BONAFIDE]) < 0.56
    assert probe(found[SPOOF], found["untouched"]) > 0.62  # without controls, cuts would give it away


# Donors: another take, another voice, fakes from disk


def folder(place, rng, **speakers):
    """A folder of noise: (name, seconds) of each file, by speaker; every speaker has a tone of her own."""
    for speaker, files in speakers.items():
        tone = rng.uniform(0.05, 0.4)
        for name, seconds in files:
            wave = rng.normal(size=round(seconds * 16000)) / 20
            wave += np.sin(tone * np.arange(len(wave))) / 9
            path = place / ("" if speaker == "top" else speaker) / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, wave.astype(np.float32))
    return place


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    rng = np.random.default_rng(3)
    place = tmp_path_factory.mktemp("takes")
    seconds = [0.5, 0.7, 0.9]
    people = {f"s{i}": [(f"t{i}{k}", seconds[k]) for k in range(3)] for i in range(4)}
    return from_folder(folder(place, rng, **people), "bonafide")


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """Of s0 and s1, and of somebody who has no takes; one is short."""
    rng = np.random.default_rng(4)
    people = {"s0": [("f00", 0.6), ("f01", 0.2)], "s1": [("f10", 0.8)], "nobody": [("f90", 0.4)]}
    return from_folder(folder(tmp_path_factory.mktemp("fakes"), rng, **people), "spoof")


@pytest.fixture
def spied(monkeypatch):
    """What each spliced recording drew, and its donor; the vocoders of this test change nothing."""
    seen = []

    def cut(*args, **options):
        seen.append({"cut": draw_cut(*args, **options)})
        return seen[-1]["cut"]

    drawn = Splices.draw_donor

    def donor(self, utt, wave, rng):
        seen[-1] |= {"utt": utt, "donor": drawn(self, utt, wave, rng)}
        return seen[-1]["donor"]

    monkeypatch.setattr(learning, "draw_cut", cut)
    monkeypatch.setattr(Splices, "draw_donor", donor)
    for name in ("nothing", "nought"):
        monkeypatch.setitem(VOCODERS._found, name, lambda wave, rng: wave)
    return seen


def spoken(takes, fakes, draws):
    """A table of what was drawn, with the speakers of donors."""
    who = takes.utterances.set_index("utt").speaker.to_dict() | {"": ""}
    whose = fakes.utterances.set_index("utt").speaker.to_dict() | {"": ""}
    rows = []
    for draw in draws:
        donor, cut = draw["donor"], draw["cut"]
        row = {"host": draw["utt"], "take": donor.utt, "fake": donor.fake_utt, "vocoder": donor.vocoder}
        row |= {"stretches": len(cut.spans), "fade": cut.fade, "speaker": who[donor.utt]}
        row |= {"own": who[donor.utt] == who[draw["utt"]], "fake_speaker": whose[donor.fake_utt]}
        rows.append(row | {"start": cut.spans[0][0], "size": np.ptp(cut.spans[0]), "shift": cut.shift})
    return pd.DataFrame(rows)


def test_whatever_is_drawn_is_drawn_alike_for_fakes_and_controls(takes, fakes, spied):
    change = Splices(1.0, ("nothing", "nought"), takes=takes, fakes=fakes)
    labels = []
    for i in range(len(takes)):
        batch = collate([AudioDataset(takes)[0, i]])
        labels += [int(change(batch, epoch).labels[0]) for epoch in range(150)]
    table = spoken(takes, fakes, spied).assign(label=labels, kind=lambda t: (t["take"] != "") + 0 + (t.fake != ""))
    assert abs(np.mean(labels) - 0.5) < 0.04
    share = table.kind.value_counts(normalize=True)
    assert share.to_dict() == pytest.approx({0: 0.5, 1: 0.25, 2: 0.25}, abs=0.04)
    for column in (
        "kind",
        "host",
        "take",
        "fake",
        "vocoder",
        "stretches",
        "fade",
        "speaker",
        "own",
        "fake_speaker",
    ):
        assert chi2_contingency(pd.crosstab(table[column], table.label)).pvalue > 0.01, column
    for column in ("start", "size", "shift"):
        two = [group[column] for _, group in table.groupby("label")]
        assert ks_2samp(*two).pvalue > 0.01, column


def test_a_fake_from_disk_and_its_control_are_by_one_speaker_or_both_by_strangers(takes, fakes, spied):
    change = Splices(1.0, ("nothing",), takes=takes, fakes=fakes)
    for i in range(len(takes)):
        for epoch in range(25):
            change(collate([AudioDataset(takes)[0, i]]), epoch)
    table = spoken(takes, fakes, spied)
    assert not (table.host == table["take"]).any()
    assert {bool(x) for x in table.own[table["take"] != ""]} == {True, False}
    disk = table[table.fake != ""]
    host = disk.host.str[:2]
    known = disk.fake_speaker != "nobody"
    assert (disk.fake_speaker[known] == disk.speaker[known]).all() and known.any()
    assert (disk.speaker[~known] != host[~known]).all() and (~known).any()
    assert set(host[disk.own]) == {"s0", "s1"}  # nobody else has fakes on disk: strangers, and strangers' takes
    assert set(disk.fake) == set(fakes.utterances.utt)


def test_the_real_and_the_fake_stretch_go_round_at_the_same_place(takes, fakes):
    change = Splices(1.0, ("nothing",), takes=takes, fakes=fakes)
    rounds = 0
    for seed in range(200):
        donor = change.draw_donor("s2-t20", np.zeros(8000, np.float32), np.random.default_rng(seed))
        if donor.fake_utt == "s0-f01":  # of 3,200 samples
            rounds += 1
            for wave in (donor.real, donor.fake):
                assert wave.shape == (8000,) and wave.dtype == np.float32
                assert np.array_equal(wave[:4800], wave[3200:]) and not np.array_equal(
                    wave[:1600], wave[1600:3200]
                )
    assert rounds > 3
    shelf = Shelf(takes)
    whole = shelf.stretch(0, 0.0, 8000, 8000)
    for share, start in ((0.0, 0), (0.5, 4000), (0.999999, 8000 - 100)):
        assert np.array_equal(shelf.stretch(0, share, 100, 8000), whole[start - (share == 0.5) * 50 :][:100])


def test_a_shelf_gives_every_recording_but_the_one_that_is_cut(takes):
    shelf = Shelf(takes)
    many = np.linspace(0, 1, 1000, endpoint=False)
    own = {shelf.utts[shelf.pick(x, "s1", "s1-t11", own=True)] for x in many}
    others = {shelf.utts[shelf.pick(x, "s1", "s1-t11", own=False)] for x in many}
    utts = set(takes.utterances.utt)
    assert own == {"s1-t10", "s1-t12"} and others == {utt for utt in utts if not utt.startswith("s1")}
    assert shelf.pick(0.3, "s9", "x", own=True) is None
    assert {shelf.utts[shelf.pick(x, "s9", "s0-t00", own=False)] for x in many} == utts - {"s0-t00"}
    unknown = Shelf(Manifest(takes.utterances.assign(speaker=""), root=takes.root))
    assert unknown.pick(0.3, "", "x", own=True) is None
    assert {unknown.utts[unknown.pick(x, "", "s0-t00", own=False)] for x in many} == utts - {"s0-t00"}
    made = Shelf(Manifest(takes.utterances.assign(source=["x"] * 11 + [""]), root=takes.root))
    assert {made.utts[made.pick(x, "s0", "x", own=False)] for x in many} == {"s3-t32"}
    assert made.pick(0.5, "s0", "x", own=True) is None


def test_without_vocoders_fakes_are_from_disk_or_there_are_none(takes, fakes, spied):
    change = Splices(1.0, (), takes=takes, fakes=fakes)
    data = AudioDataset(takes)
    labels = [int(change(collate([data[0, i]]), e).labels[0]) for i in range(len(takes)) for e in range(20)]
    assert 0.4 < np.mean(labels) < 0.6 and all(draw["donor"].fake is not None for draw in spied)
    spied.clear()
    lonely = takes.subset(utt=["s0-t00", "s1-t10"])  # fakes of s0 only: no control for s0, one of s0 for s1
    change = Splices(1.0, (), takes=lonely, fakes=fakes.subset(speaker="s0"))
    for i in range(2):
        batch = collate([AudioDataset(lonely)[0, i]])
        same = [torch.equal(change(batch, epoch).wave, batch.wave) for epoch in range(10)]
        assert same == [i == 0] * 10
    assert all(draw["donor"].utt == "s0-t00" for draw in spied if draw["donor"])
    change = Splices(1.0, ("lpc",), takes=lonely, fakes=fakes.subset(speaker="s0"))  # a vocoder makes up for it
    kinds = {change.draw_donor("s0-t00", np.ones(99), np.random.default_rng(s)).fake_utt for s in range(50)}
    assert kinds == {""}
    with pytest.raises(ValueError, match="fakes from disk need takes"):
        Splices(fakes=fakes)
    with pytest.raises(ValueError, match="nothing is fake"):
        Splices(vocoders=(), takes=takes, fakes=fakes.subset(utt=[]))


def test_donors_do_not_depend_on_batches_workers_or_the_order_of_the_list(takes, fakes):
    everything = pd.concat([takes.utterances, fakes.utterances.assign(path=[str(p) for p in fakes.paths()])])
    orders = [everything, everything.iloc[::-1], everything.sample(frac=1.0, random_state=1)]
    found = []
    for order, size, workers in zip(orders, (1, 5, 4), (0, 0, 1), strict=True):
        train = Manifest(order.assign(split="train"), root=takes.root)
        change = make_policy("splices", train, seed=3).change
        rows = {}
        plan = epoch_batches(train, size, epoch=2)
        for batch in changing_loader(AudioDataset(train, Crop(0.4)), plan, workers, change, 2):
            for i, utt in enumerate(batch.utts):
                wave = batch.wave[i, : batch.lengths[i]].tolist()
                rows[utt] = (int(batch.labels[i]), batch.fakes[i].tolist(), wave)
        found.append(rows)
    assert found[0] == found[1] == found[2] and len(found[0]) == len(everything)
    (member,) = change.members
    assert sorted(member.fakes.utts) == sorted(fakes.utterances.utt)
    assert sorted(member.takes.utts) == sorted(takes.utterances.utt)


def voice(wave, spans):
    """How the stretches differ from the rest: in level, in bands, and in how they go on from block to block."""
    inside = np.zeros(len(wave), dtype=bool)
    for start, end in spans:
        inside[start:end] = True
    found = []
    for part in (wave[inside], wave[~inside]):
        blocks = part[: len(part) // 320 * 320].reshape(-1, 320)
        power = np.abs(np.fft.rfft(blocks * np.hanning(320))) ** 2 + 1e-6
        bands = np.log([chunk.mean() for chunk in np.array_split(power.mean(0), 8)])
        found.append([*bands, np.log(np.square(part).mean() + 1e-8), np.log(power.sum(1)).std()])
    gap = np.subtract(*found)
    return [*gap, *np.abs(gap), np.square(gap[:8]).mean()]


@pytest.mark.parametrize("vocoders", [("nothing",), ()])
def test_a_donor_alone_gives_nothing_away(samples, spied, vocoders):
    """With vocoders that change nothing and "fakes" that are real, nothing tells partial fakes from controls."""
    real = samples.subset(split="train", label="bonafide", kind="full")
    u = real.utterances
    half = [speaker in set(u.speaker.unique()[:3]) for speaker in u.speaker]  # these speakers have fakes on disk
    disk = u[np.array(half) & (np.arange(len(u)) % 3 == 0)]
    takes = real.subset(utt=u.utt[~u.utt.isin(disk.utt)])
    change = Splices(1.0, vocoders, takes=takes, fakes=Manifest(disk.assign(label="spoof"), root=real.root))
    data = AudioDataset(takes, Crop(1.2))
    found = {SPOOF: [], BONAFIDE: []}
    kinds = []
    for i in range(len(takes)):
        for epoch in range(8):
            changed = change(collate([data[epoch, i]]), epoch)
            found[int(changed.labels[0])].append(voice(changed.wave[0].numpy(), spied[-1]["cut"].spans))
            kinds.append((spied[-1]["donor"].utt != "", changed.wave[0].numpy(), spied[-1]["cut"].spans))
    assert min(len(found[SPOOF]), len(found[BONAFIDE])) > 300
    assert probe(found[SPOOF], found[BONAFIDE]) < 0.55
    if vocoders:  # had fakes another take and controls the same recording, the voice would give them away
        another, same = ([voice(w, spans) for k, w, spans in kinds if k == kind] for kind in (True, False))
        assert probe(another, same) > 0.6


def test_folders_join_the_training_set(tmp_path, takes, fakes, parts):
    rng = np.random.default_rng(6)
    folder(tmp_path / "real", rng, s0=[("a", 0.3)], top=[("b", 0.2)])
    train = parts[0]
    joined = with_folders(train, str(tmp_path / "real"), str(fakes.root))
    assert with_folders(train).utterances.equals(train.utterances)
    new = joined.utterances.iloc[len(train) :]
    assert new.utt.tolist()[:2] == ["speech/b", "speech/s0-a"] and new.utt.str.startswith("fakes/").sum() == 4
    assert new.label.tolist() == ["bonafide"] * 2 + ["spoof"] * 4 and set(new.split) == {"train"}
    assert new.speaker.tolist() == ["", "s0", "nobody", "s0", "s0", "s1"]
    joined.validate(files=True)
    assert set(fully_fake(joined).utterances.utt) == set(new.utt[2:]) | set(
        train.utterances.utt[train.utterances.kind == "full"][train.utterances.label == "spoof"]
    )
    (tmp_path / "empty").mkdir()
    for options, what in (
        ({"speech": str(tmp_path / "nowhere")}, "speech .*nowhere: no such folder"),
        ({"fakes": str(tmp_path / "empty")}, "no sound files here"),
    ):
        with pytest.raises(FileNotFoundError, match=what) as caught:
            with_folders(train, **options)
        assert "\n" not in str(caught.value)
    stored = Manifest(train.utterances.assign(path="a.safetensors"))
    with pytest.raises(ValueError, match="stored features"):
        with_folders(stored, speech=str(tmp_path / "real"))


def test_a_localizer_learns_from_two_folders(takes, fakes, parts, tmp_path):
    nothing = parts[0].subset(utt=parts[0].utterances.utt[:1])
    train = with_folders(nothing, str(takes.root), str(fakes.root))
    config = FitConfig(epochs=2, batch_size=6, crop=0.4, lr=0.01, average=1, augment="splices")
    learn = partial(fit, train=train, dev=parts[1], config=config, objective=Localization)
    first = learn(small(), validate=learning.dev_frame_eer, out=tmp_path / "a")
    again = learn(small(), validate=learning.dev_frame_eer, out=tmp_path / "b")
    assert first.history.train_loss.notna().all() and 0 <= first.dev_error <= 1
    pd.testing.assert_frame_equal(first.history, again.history)
    config = replace(config, augment="none")
    with pytest.raises(ValueError, match="no partial fakes"):
        learn(small(), config=config, validate=learning.dev_frame_eer, out=tmp_path / "c")


# A second look


def test_runs_are_where_frames_score_below(parts):
    rng = np.random.default_rng(0)
    for scores in (rng.normal(size=40).round(), np.zeros(3), -np.ones(3), np.zeros(0)):
        called = np.zeros(len(scores), dtype=bool)
        for a, b in fake_runs(scores, 0.0):
            assert a < b and (a == 0 or scores[a - 1] >= 0) and (b == len(scores) or scores[b] >= 0)
            called[a:b] = True
        assert np.array_equal(called, scores < 0)


def test_a_second_look_learns_and_leaves_the_localizer_alone(parts, monkeypatch):
    train, dev = parts
    model = small().eval()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    truth = manifest_labels(train, model.hop)
    scores = {utt: np.where(labels == SPOOF, -1.0, 1.0) for utt, labels in truth.items()}
    seen = []
    loss = learning.ProposalRefiner.loss

    def spy(self, regions, found, true, weight=0.2):
        seen.append(([len(r) for r in regions], found.tolist(), true.tolist()))
        return loss(self, regions, found, true, weight)

    monkeypatch.setattr(learning.ProposalRefiner, "loss", spy)
    options = {"epochs": 2, "hidden": 16, "most": 1}
    first = train_refiner(model, train, scores, 0.0, **options)
    again = train_refiner(model, train, scores, 0.0, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items()) and not first.training
    spoofs = (train.utterances.label == "spoof").sum()
    assert len(seen) == 4 * spoofs  # of real recordings, nothing was found
    for sizes, ((start, end),), true in seen:
        assert sizes == [end - start]
        gaps = [abs(start - a) + abs(end - b) for a, b in true]  # finds are the truth, up to the grid
        assert min(gaps) < 4
    found = refined_proposals(model, first, dev, localize(model, dev, progress=False), 0.0)
    assert list(found) == dev.utterances.utt.tolist()
    for (utt, proposals), duration in zip(found.items(), dev.utterances.duration, strict=True):
        assert all(0 <= c <= 1 and 0 <= a < b <= duration + 1e-6 for c, a, b in proposals), utt
    with pytest.raises(ValueError, match="nothing to look at again"):
        train_refiner(model, train, scores, -2.0)
    with pytest.raises(ValueError, match="needs sounds"):
        train_refiner(model, Manifest(train.utterances.assign(path="a.safetensors")), scores, 0.0)


def test_objectives_need_little_of_the_settings():
    settings = SimpleNamespace(class_weights=(1.0, 1.0), seed=0, crop=None, crop_label="segments")
    assert Localization(small(), settings).options == {"rule": "any", "balance": False, "share": 0.0}
