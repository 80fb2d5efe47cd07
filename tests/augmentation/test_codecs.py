"""Codecs: every sample in its place, whatever the codec, the bit rate, the length or the batch."""

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.augmentation import codecs as module
from wedefense_nb.augmentation.codecs import (
    CODECS,
    Codec,
    CodecMissing,
    CodecSpec,
    best_lag,
    codec_delay,
    codecs,
    decode_packets,
    encode,
    g711,
    g711_levels,
    probe,
    require,
    round_trip,
)
from wedefense_nb.data.audio import load
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item

HERE = [name for name, available in codecs().available.items() if available]
LOWEST_AND_HIGHEST = [
    (name, rate) for name in HERE for rate in sorted({*CODECS[name].bitrates[:1], *CODECS[name].bitrates[-1:]})
]
EVERY = [(name, rate) for name in HERE for rate in CODECS[name].bitrates]
each = pytest.mark.parametrize("name, bitrate", LOWEST_AND_HIGHEST)
FORMANT = {"amr_nb", "gsm"}  # they model a voice, not a waveform


@pytest.fixture(scope="module")
def speech(samples) -> np.ndarray:
    return load(samples.root / "audio/S0221.flac")[0]


def snr(clean, noisy):
    return 10 * np.log10(np.square(clean).sum() / np.square(clean - noisy).sum())


def test_the_codecs_that_the_book_needs_are_here():
    assert {"mp3", "aac", "vorbis", "opus", "g722", "mulaw", "alaw"} <= set(HERE)
    assert set(HERE) & FORMANT


# G.711


@pytest.mark.parametrize("law", ["mulaw", "alaw"])
@given(frequency=st.floats(50, 3500), gain=st.floats(0.5, 0.98))
def test_g711_keeps_more_than_30_db_at_full_scale(law, frequency, gain):
    tone = gain * torch.sin(2 * torch.pi * frequency * torch.arange(8000) / 16000)
    assert snr(tone.numpy(), g711(tone, law).numpy()) > 30


@pytest.mark.parametrize("law, size", [("mulaw", 255), ("alaw", 256)])
def test_g711_is_ffmpegs_but_for_ties(law, size):
    pcm = np.arange(-32768, 32768, dtype=np.float32) / 32768
    levels = g711_levels(law)
    spec = CodecSpec("FFmpeg", f"pcm_{law}", f"pcm_{law}", (128,), "")
    theirs = decode_packets(*encode(pcm, spec, 128), spec, 128)[: len(pcm)]
    ours = g711(torch.from_numpy(pcm), law).numpy()
    border = np.abs(pcm[:, None] - (levels[1:] + levels[:-1]) / 2).min(1)
    assert len(levels) == size and set(np.unique(theirs)) == set(levels)
    assert (theirs == ours).mean() > 0.99 and border[theirs != ours].max() <= 4 / 32768


@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=20))
def test_g711_is_idempotent_and_rising(values):
    x = torch.tensor(sorted(values))
    for law in ("mulaw", "alaw"):
        y = g711(x, law)
        assert torch.equal(g711(y, law), y) and (y.diff() >= 0).all() and y.abs().max() <= 1


# In its place


@pytest.mark.parametrize("name, bitrate", EVERY)
def test_speech_stays_aligned(name, bitrate, speech):  # issue 5: segments stay where they are
    tolerance = 8 if name in FORMANT else 1  # samples: 0.5 ms, 0.06 ms
    assert abs(best_lag(speech, round_trip(speech, name, bitrate))) <= tolerance


@each
def test_a_click_stays_in_its_place(name, bitrate):
    click = np.zeros(8000, np.float32)
    click[3333] = 0.9
    assert abs(best_lag(click, round_trip(click, name, bitrate))) <= (16 if name in FORMANT else 1)


@each
def test_a_burst_stays_in_its_place(name, bitrate):
    burst = np.zeros(12000, np.float32)
    n = 1600  # 0.1 s
    burst[4800 : 4800 + n] = np.hanning(n) * probe()[1200 : 1200 + n]
    burst *= 0.5 / np.abs(burst).max()
    energy = burst.astype(float) ** 2
    late = round_trip(burst, name, bitrate).astype(float) ** 2
    t = np.arange(12000) / 16
    centre = (energy @ t) / energy.sum()
    moved = (late @ t) / late.sum()
    assert abs(moved - centre) < (5 if name in FORMANT or bitrate < 8 else 1.5)  # ms


def test_lags_have_a_sign():
    wave = probe(0.1)
    late = np.pad(wave, (37, 0))
    assert best_lag(wave, late) == 37 and best_lag(late, wave) == -37 and best_lag(wave, wave) == 0


def test_without_compensation_it_would_be_late():
    assert codec_delay("mp3", 64) == 1105 and codec_delay("aac", 32) == 1024 and codec_delay("g722", 64) == 22
    assert abs(codec_delay("opus", 64) - 104) <= 1


# Whatever comes in


@each
@pytest.mark.parametrize("n", [1, 1600, 16001])
def test_length_is_kept_and_silence_is_finite(name, bitrate, n, speech):
    for wave in (speech[8000 : 8000 + n], np.zeros(n, np.float32), np.ones(n, np.float32)):
        out = round_trip(wave, name, bitrate)
        assert out.shape == (n,) and out.dtype == np.float32 and np.isfinite(out).all() and np.abs(out).max() <= 1


@each
def test_silence_stays_silent_and_speech_audible(name, bitrate, speech):
    assert np.abs(round_trip(np.zeros(8000, np.float32), name, bitrate)).max() < 0.01
    kept = round_trip(speech, name, bitrate)
    assert 0.3 < kept.std() / speech.std() < 1.5 and not np.array_equal(kept, speech)


def test_more_bits_are_closer(speech):
    for name in ("mp3", "opus", "g722", "aac", "vorbis", "mulaw", "alaw"):
        low, *_, high = CODECS[name].bitrates
        worse, better = (round_trip(speech, name, rate) for rate in (low, high))
        assert np.corrcoef(speech, better)[0, 1] > np.corrcoef(speech, worse)[0, 1], name


def test_the_middle_bit_rate_is_the_usual_one(speech):
    wave = speech[:4000]
    assert np.array_equal(round_trip(wave, "g722"), round_trip(wave, "g722", 56))
    assert not np.array_equal(round_trip(wave, "g722"), round_trip(wave, "g722", 48))


def test_the_input_is_left_as_it_was(speech):
    before = speech.copy()
    round_trip(speech, "mp3")
    assert np.array_equal(before, speech)


# What is missing or wrong


def test_a_missing_encoder_is_named_with_the_remedy(monkeypatch):
    spec = CodecSpec("FFmpeg", "libnowhere", "aac", (16,), "")
    monkeypatch.setitem(CODECS, "nowhere", spec)
    monkeypatch.setitem(CODECS, "nofile", CodecSpec("soundfile", "WAV/NOWHERE", "", (16,), ""))
    assert not codecs().available["nowhere"] and not codecs().available["nofile"]
    messages = {"nowhere": "libnowhere.*FFmpeg.*mp3.*pip install", "nofile": "WAV/NOWHERE.*libsndfile"}
    for name, part in messages.items():
        for call in (lambda n=name: round_trip(np.zeros(1600), n, 16), lambda n=name: Codec((n, "mp3"))):
            with pytest.raises(CodecMissing, match=part):
                call()


def test_a_decoder_alone_is_not_enough(monkeypatch):
    assert "amrwb" in av.codecs_available  # it can be decoded
    monkeypatch.setitem(CODECS, "half", CodecSpec("FFmpeg", "amrwb", "amrwb", (16,), ""))
    with pytest.raises(CodecMissing, match="amrwb"):
        require("half")


def test_wrong_names_and_rates_are_refused():
    for call, part in (
        (lambda: round_trip(np.zeros(1600), "mp4"), "unknown codec 'mp4'.*mp3"),
        (lambda: round_trip(np.zeros(1600), "mp3", 92), "92 kbit/s.*96"),  # a published 92 probably means 96
        (lambda: Codec("mp3", bitrate=92), "92"),
        (lambda: Codec(("mp3", "gsm"), bitrate=(16, 32)), "gsm"),
        (lambda: Codec(()), "at least one"),
        (lambda: g711(torch.zeros(3), "ulaw"), "mulaw"),
        (lambda: Codec(p=1.5), "probability"),
    ):
        with pytest.raises(ValueError, match=part):
            call()


# As a transform


@pytest.fixture(scope="module")
def batch(speech):
    waves = [speech[:20000], speech[:9123], np.zeros(1600, np.float32)]
    return collate([Item(name, wave, 1) for name, wave in zip("abc", waves, strict=True)])


def test_codecs_and_rates_are_drawn_from_the_recordings_own_generator(batch):  # pitfalls 50, 51
    codec = Codec(("mp3", "opus", "g722", "mulaw"), seed=3)
    draws = [codec.draw(np.random.default_rng(i)) for i in range(400)]
    assert set(draws) == {(n, r) for n in codec.choices for r in CODECS[n].bitrates}
    assert [sum(n == name for n, _ in draws) for name in codec.choices] == pytest.approx([100] * 4, abs=25)
    assert len({float(codec(batch, epoch=e).wave[0].double().sum()) for e in range(6)}) > 3
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    codec(batch)
    assert np.array_equal(np.random.get_state()[1], state)  # the global generator is nobody's
    assert Codec.on_cpu


def test_bit_rates_are_filtered_by_codec():
    codec = Codec(("mp3", "opus"), bitrate=(6, 16))
    assert codec.choices == {"mp3": [16], "opus": [6, 16]} and Codec("amr_nb", 12.2).choices == {"amr_nb": [12.2]}


def test_delays_are_measured_once(monkeypatch, speech):
    codec_delay.cache_clear()
    calls = []
    original = module._uncut
    monkeypatch.setattr(module, "_uncut", lambda *a: calls.append(a[1:]) or original(*a))
    for _ in range(3):
        round_trip(speech[:1600], "g722", 64)
    assert len(calls) == 4  # three recordings and one probe
