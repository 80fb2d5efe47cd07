"""What is measured of a recording, and that the pieces in which it comes do not matter."""

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.augmentation.codecs import round_trip
from wedefense_nb.data.audio import AudioError, load, save
from wedefense_nb.understanding.quality import (
    SOUND,
    TEXTURE,
    Meter,
    clipped_samples,
    codec_of,
    measure,
    measure_all,
    waves_of,
)

RATE = 16_000


def heard(wave: np.ndarray, *cuts: int) -> Meter:
    meter = Meter()
    for piece in np.split(wave, cuts):
        meter.look(piece[None])
        meter.add(piece)
    return meter


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.3, 0.97, 0.98, 1.0]), min_size=1, max_size=12))
def test_flat_tops_are_counted_as_one_would_by_hand(values):
    n = len(values)
    want = 0
    for i, value in enumerate(values):
        beside = [values[j] for j in (i - 1, i + 1) if 0 <= j < n]
        want += abs(value) >= 0.98 and value in beside
    assert clipped_samples(np.array([values])) == want


@given(st.lists(st.integers(0, 9000), max_size=6))
def test_how_the_pieces_are_cut_does_not_matter(cuts):
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.normal(size=9000) * np.sin(np.arange(9000) / 900)
    whole, cut = heard(wave), heard(wave, *sorted(cuts))
    assert np.allclose(whole.table().astype(float), cut.table().astype(float), equal_nan=True, atol=1e-5)
    assert whole.quality() == cut.quality()
    assert np.allclose(list(whole.sound().values()), list(cut.sound().values()), atol=1e-4)
    assert np.allclose(whole.texture(), cut.texture(), atol=0.05)


def test_level_pitch_and_voicing_of_what_is_known():
    t = np.arange(RATE) / RATE
    pulses = sum(np.sin(2 * np.pi * 200 * k * t) for k in range(1, 12))
    table = heard(0.1 * pulses / pulses.std()).table()
    assert np.allclose(table.level, -20, atol=0.5) and (table.voicing > 0.95).all()
    assert np.allclose(table.pitch, 200, atol=3) and table.speech.all()
    noise = heard(0.1 * np.random.default_rng(0).normal(size=RATE)).table()
    assert (noise.voicing < 0.5).all() and not noise.speech.any() and noise.active.all()


def test_loudness_changes_the_level_and_nothing_else(samples):
    wave = load(samples.paths()[0])[0]
    loud, soft = heard(wave), heard(wave * 0.1)
    assert loud.quality().level - soft.quality().level == pytest.approx(20, abs=0.11)
    assert np.allclose(list(loud.sound().values()), list(soft.sound().values()), atol=0.05)
    assert np.allclose(loud.texture(), soft.texture(), atol=0.05)


def test_silence_and_almost_nothing_have_facts_too():
    for wave in (np.zeros(RATE), np.zeros(10), np.zeros(0), 1e-7 * np.ones(RATE)):
        meter = heard(wave)
        quality = meter.quality()
        assert quality.speech == 0 and quality.level <= -75 and quality.duration == round(len(wave) / RATE, 3)
        assert list(meter.sound()) == SOUND and np.isfinite(list(meter.sound().values())).all()
        assert meter.texture().shape == (80,) and np.isfinite(meter.texture()).all()


def test_a_texture_is_what_one_computes_of_the_whole(samples):
    """Against plain loops over frames and triangles between 60 and 7600 Hz."""
    wave = load(samples.paths()[3])[0].astype(float)
    centres = 700 * np.expm1(np.linspace(1127 * np.log1p(60 / 700), 1127 * np.log1p(7600 / 700), 26) / 1127)
    mel = 1127 * np.log1p(np.fft.rfftfreq(1024, 1 / RATE) / 700)
    frames = []
    for at in range(0, len(wave) - 399, 160):
        power = np.abs(np.fft.rfft(wave[at : at + 400] * np.hanning(400), 1024)) ** 2
        bands = []
        for low, middle, high in zip(centres, centres[1:], centres[2:], strict=False):
            a, b, c = (1127 * np.log1p(x / 700) for x in (low, middle, high))
            bands.append((power * np.clip(np.minimum((mel - a) / (b - a), (c - mel) / (c - b)), 0, None)).sum())
        frames.append(10 * np.log10(np.maximum(bands, 1e-14)))
    bands = np.maximum(np.array(frames) - np.max(frames), -60)
    active = bands[bands.max(axis=1) > -45]
    n = np.arange(24) + 0.5
    cosines = (
        np.cos(np.pi * np.outer(np.arange(13), n) / 24) * np.sqrt(np.where(np.arange(13) == 0, 1, 2) / 24)[:, None]
    )
    cepstra = active @ cosines.T
    want = np.concatenate([active.mean(0), active.std(0), cepstra.std(0), np.diff(cepstra, axis=0).std(0)])
    got = dict(zip(TEXTURE, heard(wave).texture(), strict=True))
    assert np.allclose(list(got.values())[:-6], want, atol=0.05)
    level = bands.mean(axis=1) - bands.mean()
    power = np.abs(np.fft.rfft(level * np.hanning(len(level)))) ** 2
    pace = np.arange(len(power)) * 100 / len(level)
    for low, high in ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 51)):
        share = power[(pace >= low) & (pace < high)].sum() / power.sum()
        assert 10 ** got[f"modulation from {low} Hz"] == pytest.approx(share, abs=0.01)


def test_the_pace_of_a_level_is_found_where_it_is():
    t = np.arange(3 * RATE) / RATE
    hiss = 0.1 * np.random.default_rng(0).normal(size=len(t))
    for hertz, name in ((3, "2"), (6, "4"), (12, "8")):
        moved = heard(hiss * (1 + 0.8 * np.sin(2 * np.pi * hertz * t))).texture()[-6:]
        assert TEXTURE[-6:][int(np.argmax(moved))] == f"modulation from {name} Hz"


def test_speech_lies_beside_voices_only():
    t = np.arange(3 * RATE) / RATE
    voice = 0.1 * sum(np.sin(2 * np.pi * 150 * k * t) for k in range(1, 8)) * (t < 1)
    assert heard(voice).quality().speech == pytest.approx(1.0, abs=0.1)


def test_codecs_leave_traces(samples):
    wave = load(samples.paths()[0])[0]
    as_it_is = np.rint(wave * 32767) / 32768
    assert heard(as_it_is).quality().traces == ()
    telephone = heard(round_trip(wave, "alaw", 64)).quality()
    assert telephone.bandwidth < 4100 and "telephone" in telephone.traces[0]
    assert "steep edge at 5.5 kHz" in heard(round_trip(wave, "mp3", 16)).quality().traces[0]


def test_a_file_says_its_codec_rate_and_channels(tmp_path):
    wave = 0.3 * np.sin(np.arange(2 * 8000) / 3)
    both = np.stack([wave, 0.5 * wave], 1)
    sf.write(tmp_path / "a.wav", both, 8000, subtype="ULAW")
    quality, _ = measure(tmp_path / "a.wav")
    assert (quality.rate, quality.channels, quality.codec, quality.duration) == (8000, 2, "pcm_mulaw", 2.0)
    assert quality.peak == pytest.approx(20 * np.log10(0.3), abs=0.3)
    sf.write(tmp_path / "b.wav", np.clip(5 * both, -1, 1), 8000)
    assert measure(tmp_path / "b.wav")[0].clipped > 0.2
    sf.write(tmp_path / "c.wav", (np.arange(16000) % 100 - 50) / 256, 16000, subtype="PCM_U8")
    assert "256 different values" in measure(tmp_path / "c.wav")[0].traces[-1]


def test_long_pieces_and_short_ones_measure_the_same(tmp_path):
    rng = np.random.default_rng(1)
    sf.write(tmp_path / "a.wav", 0.1 * rng.normal(size=(30_000, 2)), 44_100)
    assert measure(tmp_path / "a.wav", 0.05) == measure(tmp_path / "a.wav", 60.0)
    joined = np.concatenate(list(waves_of(tmp_path / "a.wav", 0.05)), axis=1)
    assert np.allclose(joined.mean(axis=0), load(tmp_path / "a.wav")[0], atol=1e-6)


def test_what_is_no_recording_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("Dear Sir")
    with pytest.raises(AudioError, match="not an audio file"):
        measure(tmp_path / "a.wav")
    assert codec_of(tmp_path / "a.wav") == ""


def test_a_playlist_does_not_make_the_codec_of_another_file_known(tmp_path):
    sf.write(tmp_path / "secret.mp3", 0.1 * np.sin(np.arange(48_000) / 9), 16_000)
    assert codec_of(tmp_path / "secret.mp3").startswith("mp3")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.mp3\n#EXT-X-ENDLIST\n"
    for name in ("list.m3u8", "voice.mp3"):
        (tmp_path / name).write_text(playlist)
        assert codec_of(tmp_path / name) == ""


def test_a_corpus_is_a_table_in_its_order(few):
    part = few.subset(utt=list(few.utterances.utt[:3]))
    table = measure_all(part)
    assert table.index.tolist() == part.utterances.utt.tolist() and set(SOUND) < set(table.columns)
    quality, sound = measure(part.paths()[1])
    assert table.level.iloc[1] == quality.level and table.flux.iloc[1] == sound["flux"]
    assert quality.text().startswith(f"{quality.duration:.1f} s, ")


def test_a_tone_written_down_is_found_again(tmp_path):
    path = save(tmp_path / "t.wav", 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE))
    quality, _ = measure(path)
    assert 1000 <= quality.bandwidth < 1300 and quality.peak == pytest.approx(-6.0, abs=0.1)
