"""Corpora are joined without collisions, drawn by weight, and compared with each other."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wedefense_nb.data import contamination
from wedefense_nb.data.batches import epoch_batches, token_batches
from wedefense_nb.data.manifest import Manifest, ManifestError
from wedefense_nb.data.mixtures import by_corpus, crossed, mixture, mixture_order, shares

listened = contamination._listen_to


def table(labels: list[str], corpus: list[str] | None = None, split: str = "train") -> Manifest:
    rows = [{"utt": f"u{i}", "path": f"u{i}.wav", "label": label} for i, label in enumerate(labels)]
    u = pd.DataFrame(rows).assign(split=split, speaker="s", attack="", codec="", duration=1.0, sample_rate=16000)
    return Manifest(u if corpus is None else u.assign(corpus=corpus))


def test_a_mixture_reads_back_from_its_folder(samples, tmp_path):
    some = samples.subset(split="dev")
    made = mixture({"a": some, "b.2": samples.root}, tmp_path / "deep" / "er")
    made.write(tmp_path / "deep" / "er")
    read = Manifest.read(tmp_path / "deep" / "er")  # finds every recording
    assert len(read) == len(some) + len(samples)
    assert read.utterances.corpus.value_counts().to_dict() == {"b.2": len(samples), "a": len(some)}
    assert not any(path.startswith("/") for path in read.utterances.path)
    first = read.utterances.iloc[0]
    assert (
        first.utt == "a-" + some.utterances.utt.iloc[0] and first.speaker == "a-" + some.utterances.speaker.iloc[0]
    )
    assert len(read.segments) == len(some.segments) + len(samples.segments)
    assert set(read.segments.utt) <= set(read.utterances.utt)


def test_absolute_paths_and_unknown_speakers_stay():
    one = table(["bonafide"])
    one.utterances["path"] = "/data/x.wav"
    one.utterances["speaker"] = ""
    u = mixture({"one": one}).utterances
    assert u.path.tolist() == ["/data/x.wav"] and u.speaker.tolist() == [""]


@pytest.mark.parametrize(
    "corpora, what", [({}, "needs a corpus"), ({"a b": 1}, "'a b' cannot name"), ({"": 1}, "''")]
)
def test_what_is_no_mixture(corpora, what):
    with pytest.raises(ManifestError, match=what):
        mixture(corpora)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=6), st.floats(1, 50))
def test_shares_lie_between_size_and_equality(sizes, temperature):
    named = {str(i): size for i, size in enumerate(sizes)}
    drawn, plain = shares(named, temperature), shares(named)
    assert sum(drawn.values()) == pytest.approx(1)
    order = sorted(named, key=named.get)
    assert all(drawn[a] <= drawn[b] + 1e-12 for a, b in zip(order, order[1:], strict=False))
    assert max(drawn.values()) <= max(plain.values()) + 1e-12
    assert set(shares(named, np.inf).values()) == {1 / len(sizes)}


@pytest.mark.parametrize("sizes, temperature", [({}, 1), ({"a": 0}, 1), ({"a": 1}, 0.5), ({"a": 1}, float("nan"))])
def test_shares_refuse(sizes, temperature):
    with pytest.raises(ValueError, match="must be positive"):
        shares(sizes, temperature)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("rf"), st.sampled_from("abc")), min_size=4, max_size=60),
    st.tuples(*[st.integers(0, 5)] * 3),
    st.integers(0, 9),
)
def test_drawn_by_weight(rows, weights, seed):
    """Half of each class; each corpus its share of a class to within one; nobody twice before all came."""
    labels = [{"r": "bonafide", "f": "spoof"}[r] for r, _ in rows]
    manifest = table(labels, [c for _, c in rows])
    u = manifest.utterances
    asked = {name: w for name, w in zip("abc", weights, strict=True) if name in set(u.corpus)}
    possible = all(any(asked[c] for c in u.corpus[u.label == label]) for label in ("bonafide", "spoof"))
    if not possible:
        with pytest.raises(ValueError, match="recordings to draw"):
            mixture_order(manifest, asked, np.random.default_rng(seed))
        return
    order = mixture_order(manifest, asked, np.random.default_rng(seed))
    assert len(order) == len(u)
    drawn = u.iloc[order]
    for label, n in (("spoof", len(u) // 2), ("bonafide", len(u) - len(u) // 2)):
        part = drawn[drawn.label == label]
        assert len(part) == n
        has = {c: int(((u.label == label) & (u.corpus == c)).sum()) for c in asked}
        total = sum(asked[c] for c in asked if has[c])
        for c in asked:
            times = part[part.corpus == c].utt.value_counts()
            assert abs(times.sum() - n * asked[c] * (has[c] > 0) / total) < 1 + 1e-9
            if len(times):
                assert times.max() - (times.min() if len(times) == has[c] else 0) <= 1


@pytest.mark.parametrize(
    "weights, what",
    [({"a": 1}, "without a weight"), ({"a": 1, "b": -1}, "without a weight"), ({"a": 1, "b": 1, "c": 1}, "'c'")],
)
def test_weights_that_cannot_be(weights, what):
    manifest = table(["bonafide", "spoof"] * 2, ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match=what):
        mixture_order(manifest, weights, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no column corpus"):
        mixture_order(table(["bonafide", "spoof"]), {}, np.random.default_rng(0))


def test_batches_of_an_order():
    manifest = table(["bonafide", "spoof", "spoof", "bonafide"])
    order = np.array([3, 3, 0, 1])
    assert [[i for _, i in b] for b in epoch_batches(manifest, 2, order=order)] == [[3, 3], [0, 1]]
    of_tokens = token_batches(manifest, 2.0, order=order)
    assert sorted(i for batch in of_tokens for _, i in batch) == [0, 1, 3, 3]


def test_a_corpus_of_one_class_is_marked():
    both = mixture({"real": table(["bonafide"] * 2), "all": table(["bonafide", "spoof"])})
    held = by_corpus(both)
    assert held.one_class.tolist() == [True, False]
    assert held.loc[("real", "train"), ["bonafide", "spoof", "speakers"]].tolist() == [2, 0, 1]


def test_what_another_corpus_tests_with_is_found(samples):
    # pitfall 15
    train = Manifest(samples.subset(split="train", kind="full").utterances.head(6), root=samples.root)
    renamed = train.utterances.head(2).assign(utt=["x", "y"], split="eval", speaker="other")
    copied = Manifest(renamed, root=samples.root)
    both = mixture({"a": train, "b": copied})
    assert len(crossed(both)) == 0  # by name nothing is shared
    found = crossed(both, audio=True, workers=1)
    assert found[["train_corpus", "corpus", "split", "kind", "shared"]].values.tolist() == [
        ["a", "b", "eval", "identical audio", 2]
    ]
    named = mixture({"a": table(["bonafide"]), "b": table(["bonafide"], split="dev")})
    assert len(crossed(named)) == 0  # the speakers s of two corpora are not one
    for part in ("a", "b"):
        named.utterances.loc[named.utterances.corpus == part, "utt"] = f"{part}-LJ001-0001"
    found = crossed(named)
    assert set(found.kind) == {"speaker", "source recording"} and set(found.train_corpus) == {"a"}


def test_longer_recordings_are_planned_as_they_will_be_cut():
    manifest = table(["bonafide", "spoof"] * 4)
    manifest.utterances["duration"] = [1.0, 2.0, 3.0, 40.0] * 2
    with pytest.raises(ValueError, match="not of 0 to 6.0 s"):
        token_batches(manifest, 6.0)
    plan = token_batches(manifest, 6.0, longest=3.0)
    kept = manifest.utterances.duration.clip(upper=3.0)
    assert sorted(i for batch in plan for _, i in batch) == list(range(8))
    assert all(len(batch) * max(kept[i] for _, i in batch) <= 6.0 for batch in plan)
    assert max(map(len, plan)) > 1


def test_each_recording_is_heard_once(samples, monkeypatch):
    heard = []
    monkeypatch.setattr(contamination, "_listen_to", lambda path: (heard.append(path), listened(path))[1])
    parts = {}
    for at, name in enumerate("abc"):
        u = samples.subset(kind="full").utterances.iloc[6 * at : 6 * at + 6]
        parts[name] = Manifest(u.assign(split=["train", "train", "dev", "dev", "eval", "eval"]), root=samples.root)
    joined = mixture(parts)
    crossed(joined, audio=True, workers=1)
    assert len(heard) == len(joined) == len(set(heard))
