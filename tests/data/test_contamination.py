"""What two sets share is found: by name, by source, by samples, by sound (pitfall 15)."""

import io

import av
import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.trees import tree
from wedefense_nb.data.audio import load, save
from wedefense_nb.data.contamination import (
    Fingerprint,
    bit_error,
    contamination,
    content_hash,
    fingerprint,
    listen,
    near_pairs,
    origins,
    plot_contamination,
)
from wedefense_nb.data.corpora import survey
from wedefense_nb.data.manifest import Manifest


@pytest.fixture(scope="module")
def train(samples):
    return samples.subset(split="train", kind="full", attack=["", "world"])


@pytest.fixture(scope="module")
def test(samples):
    return samples.subset(split="eval", kind="full")


@pytest.fixture(scope="module")
def waves(train):
    return [load(p)[0] for p in train.paths()]


@pytest.fixture(scope="module")
def prints(waves):
    return [fingerprint(w) for w in waves]


def mp3(wave, rate=16000):
    buffer = io.BytesIO()
    sf.write(buffer, wave, rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.5)
    buffer.seek(0)
    return sf.read(buffer, dtype="float32")[0]


def opus(wave):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=16000, layout="mono", options={"b": "24k"})
        for i in range(0, len(wave) - 319, 320):
            pcm = (wave[None, i : i + 320] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate = 16000
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as got:
        down = av.AudioResampler(format="fltp", layout="mono", rate=16000)
        return np.concatenate([x.to_ndarray()[0] for f in got.decode(audio=0) for x in down.resample(f)])


def noisy(wave):
    noise = np.random.default_rng(0).normal(size=len(wave)).astype(np.float32)
    return wave + 0.056 * wave.std() * noise


CHANGES = {
    "softer": lambda w: 0.05 * w,
    "inverted": lambda w: -w,
    "cut 0.3 s": lambda w: w[4800:],
    "MP3": mp3,
    "Opus": opus,
    "noise 25 dB": noisy,
    "telephone": lambda w: np.diff(w, prepend=0.0).astype(np.float32),  # a tilt of 6 dB per octave
    "DC": lambda w: w + 0.01,
    "padded": lambda w: np.concatenate([np.zeros(1000, np.float32), w]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_copies_are_found_with_their_partner(name, waves, prints):
    chosen = range(0, len(waves), 9)
    pairs = near_pairs(prints, [fingerprint(CHANGES[name](waves[i])) for i in chosen])
    found = {(int(r.test), int(r.train)) for r in pairs.itertuples()}
    hits = sum((j, i) in found for j, i in enumerate(chosen))
    least = {"Opus": 0.8, "cut 0.3 s": 0.9}.get(name, 1.0)  # of one second, little loud speech is left
    assert hits >= least * len(chosen), hits / len(chosen)
    if name == "cut 0.3 s":
        best = pairs.sort_values("bit_error").drop_duplicates("test")
        assert np.allclose(best["shift"], 0.3, atol=0.02)


def test_other_sentences_are_not_found(train, test, prints):
    other = [p for _, p in listen(test)]
    assert near_pairs(prints, other).empty  # other voices, other sentences


def test_within_a_corpus_pairs_say_the_same_words(train, prints):
    """What is found besides the recording itself is a copy of it: same text, same voice."""
    pairs = near_pairs(prints, prints)
    assert (pairs.train == pairs.test).sum() == len(prints)
    a, b = (train.utterances.iloc[pairs[c]].reset_index() for c in ("train", "test"))
    assert (a.text == b.text).all()


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_bit_error_is_a_distance_of_bits(seed):
    rng = np.random.default_rng(seed)
    p = fingerprint(rng.normal(size=12000).astype(np.float32))
    assert bit_error(p, p) == (0.0, int(p.loud.sum()))
    flipped = p._replace(words=~p.words)
    assert bit_error(p, flipped)[0] == 1.0 and bit_error(p, p, 10_000) == (1.0, 0)
    q = fingerprint(rng.normal(size=12000).astype(np.float32))
    assert bit_error(p, q, 3) == bit_error(q, p, -3)


def test_only_frames_that_are_loud_in_both_are_compared():
    weak = np.zeros((3, 6), np.uint32)
    a = Fingerprint(np.uint32([0, 0, 0]), np.array([True, True, False]), weak)
    b = Fingerprint(np.uint32([1, 7, 7]), np.array([True, False, True]), weak)
    assert bit_error(a, b) == (1 / 32, 1)


def test_the_least_certain_bits_are_those_that_noise_turns(waves):
    turned = []
    for seed, wave in enumerate(waves[:5]):
        noise = np.random.default_rng(seed).normal(size=len(wave))
        clean = fingerprint(wave)
        noisy = fingerprint(wave + 1e-2 * wave.std() * noise)
        for bits, masks, loud in zip(clean.words ^ noisy.words, clean.weak, clean.loud, strict=True):
            among = np.bitwise_or.reduce(masks)
            assert np.bitwise_count(among) == clean.weak.shape[1]
            if loud:
                turned.append((np.bitwise_count(bits & among), np.bitwise_count(bits)))
    among, every = np.sum(turned, axis=0, dtype=int)
    assert every > 20 and among / every > 0.8


def test_a_pair_needs_enough_speech_in_common(waves):
    whole = fingerprint(waves[0])
    loud = np.flatnonzero(whole.loud)
    start = loud[len(loud) // 2]
    part = Fingerprint(*(field[start : start + 20] for field in whole))  # a third of a second
    assert near_pairs([whole], [part]).empty
    found = near_pairs([whole], [part], shortest=0.1)
    assert found.bit_error.tolist() == [0.0] and found["shift"].tolist() == pytest.approx([start * 0.016])


def test_silence_and_clicks_match_nothing(prints):
    click = np.zeros(8000, np.float32)
    click[4000] = 1
    odd = [
        fingerprint(np.zeros(20000, np.float32)),
        fingerprint(click),
        fingerprint(np.zeros(10, np.float32)),
    ]
    assert near_pairs(prints, odd).empty and near_pairs([*prints[:3], *odd], odd[:1]).empty


def test_content_is_the_sound_not_the_file(tmp_path, waves):
    save(tmp_path / "a.wav", waves[0])
    save(tmp_path / "b.flac", waves[0])
    one, two = (content_hash(load(tmp_path / n)[0]) for n in ("a.wav", "b.flac"))
    assert one == two != content_hash(waves[0][1:]) and content_hash(waves[0]) == one
    other = waves[0].copy()
    other[500] += 1 / 32768  # the least difference of 16 bits
    assert content_hash(other) != one


@pytest.mark.parametrize(
    "utt, recording, voice",
    [
        ("ljspeech_melgan/LJ001-0001_gen", "LJSpeech:LJ001-0001", "LJSpeech:LJ"),
        ("C1/F01_p225_001", "VCTK:p225_001", "VCTK:p225"),
        ("processed/encodec_24khz+p272_103", "VCTK:p272_103", "VCTK:p272"),
        ("dev-clean_1462_170145_000020_000002", "LibriTTS:1462_170145_000020_000002", "LibriTTS:1462"),
        ("1272-128104-0000", "LibriSpeech:1272-128104-0000", "LibriSpeech:1272"),
        ("codec_version/x/SSB09660003_lpcnet_m4a", "AISHELL-3:SSB09660003", "AISHELL-3:SSB0966"),
        ("BAC009S0764W0123", "AISHELL-1:S0764W0123", "AISHELL-1:S0764"),
        ("a00/id10318/YYsxcZ5saac-00002-006", "VoxCeleb:id10318/YYsxcZ5saac", "VoxCeleb:id10318"),
        ("jsut_pwg/BASIC5000_0001_gen", "JSUT:BASIC5000_0001", "JSUT:BASIC"),
        ("LA_T_1138215", "ASVspoof 2019 LA:LA_T_1138215", "me"),
        ("LA_E_2834763", "", "me"),
        ("clip_12345_001", "", "me"),
        ("CON_T_0000029", "", "me"),
        ("HAD_train_fake_00000001", "", "me"),
    ],
)
def test_sources_are_known_by_their_names(utt, recording, voice):
    u = pd.DataFrame({"utt": [utt], "path": ["x.wav"], "speaker": ["me"]})
    assert origins(u).iloc[0].tolist() == [recording, voice]


def test_what_a_corpus_says_of_its_sources_is_believed_first():
    """Codec seeds and pairs stand for the source; where none is given, a recording of such a corpus is its own."""
    u = pd.DataFrame(
        {
            "utt": ["a", "b", "c", "p225_001"],
            "path": "p300_001.wav",
            "speaker": ["s", "s", "s", ""],
            "source": ["x", "", "-", ""],
            "codec_seed": ["y", "y", "-", ""],
        }
    )
    assert origins(u).recording.tolist() == ["x", "y", "c", "VCTK:p225_001"]
    assert origins(u).voice.tolist() == ["s", "s", "s", "VCTK:p225"]
    plain = origins(u[["utt", "path", "speaker"]].head(1))
    assert plain.recording.tolist() == ["VCTK:p300_001"] and plain.voice.tolist() == ["VCTK:p300"]


def test_corpora_that_share_a_source(tmp_path):
    """WaveFake is made of LJSpeech; so are other corpora: same sentence, other names."""
    fake = survey("wavefake", tree("wavefake", tmp_path / "w"))[0]
    real = survey("generic", tree("generic", tmp_path / "g"))[0]
    u = real.utterances.assign(utt=["x/LJ001-0001", "other"], corpus="generic")
    table = contamination(fake, Manifest(u, root=real.root), audio=False).set_index("kind")
    assert table.test["source recording"] == 1 and table.example["source recording"] == "LJSpeech:LJ001-0001"
    assert table.test["speaker"] == 1 and table.train["source recording"] == 3
    ps, la = (survey(n, tree(n, tmp_path / n))[0] for n in ("partialspoof", "asvspoof2019_la"))
    table = contamination(la, ps, audio=False).set_index("kind")
    assert table.share["made from the same corpus"] == 1.0 and table.example["made from the same corpus"] == "VCTK"
    assert table.test["speaker"] > 0


def test_the_table_counts_what_was_planted(train, test, tmp_path):
    train, test = (m.subset(utt=m.utterances.utt[:60].tolist()) for m in (train, test))
    clean = contamination(train, test).set_index("kind")
    assert clean.test.drop("attack").sum() == 0 and clean.test["attack"] > 0
    rows = []
    for i, path in enumerate(train.paths()[:6]):
        wave = load(path)[0]
        save(tmp_path / f"{i}.wav", wave if i < 2 else np.clip(mp3(0.3 * wave), -1, 1))
        rows.append(
            {
                "utt": f"new{i}",
                "path": str(tmp_path / f"{i}.wav"),
                "label": "bonafide",
                "split": "eval",
                "speaker": "",
                "attack": "",
                "codec": "",
                "duration": 1.0,
                "sample_rate": 16000,
            }
        )
    base = test.utterances.iloc[:20].assign(path=[str(p) for p in test.paths()[:20]])[list(rows[0])]
    spoiled = Manifest(pd.concat([base, pd.DataFrame(rows)], ignore_index=True))
    table = contamination(train, spoiled).set_index("kind")
    assert table.test["identical audio"] == 2 and table.test["near-identical audio"] == 4
    assert (
        table.share["near-identical audio"] == pytest.approx(4 / 26)
        and " is S" in table.example["near-identical audio"]
    )
    assert table.test["speaker"] == 0  # no name gives it away
    ax = plot_contamination(table.reset_index())
    assert [bar.get_width() for bar in ax.patches] == (100 * table.share[::-1]).tolist()  # the first on top
