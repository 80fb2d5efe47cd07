import base64
import re

import av
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.data import audio
from wedefense_nb.data.audio import (
    SAMPLE_RATE,
    AudioError,
    Recording,
    decode,
    info,
    load,
    play,
    plot_spectrogram,
    resample,
    resample_stream,
    save,
    stream,
)


def tone(rate: int, seconds: float = 0.6, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    t = np.arange(int(rate * seconds)) / rate
    wave = 0.4 * np.sin(2 * np.pi * hertz * t) + 0.01 * np.random.default_rng(0).normal(size=len(t))
    return np.stack([wave] * channels, axis=1).astype(np.float32)


def pitch(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return np.argmax(spectrum) * SAMPLE_RATE / len(wave)


def write_av(path, codec: str, wave: np.ndarray, rate: int) -> None:
    """Encode with FFmpeg, for formats that libsndfile cannot write."""
    layout = {1: "mono", 2: "stereo"}[wave.shape[1]]
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        pcm = (wave * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.sample_rate = rate
        convert = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        for f in convert.resample(frame) + convert.resample(None):
            out.mux(stream.encode(f))
        out.mux(stream.encode(None))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_any_rate_and_format_keeps_pitch_and_duration(tmp_path, suffix, rate):  # pitfall 59
    sf.write(tmp_path / f"x.{suffix}", tone(rate, channels=2), rate)
    wave, sr = load(tmp_path / f"x.{suffix}")
    assert sr == SAMPLE_RATE and wave.dtype == np.float32 and wave.ndim == 1
    assert abs(len(wave) - 0.6 * SAMPLE_RATE) <= 0.12 * SAMPLE_RATE * (suffix == "mp3") + 1
    assert abs(pitch(wave) - 440) < 4 and np.abs(wave).max() <= 1


@pytest.mark.parametrize("codec, name", [("aac", "x.m4a"), ("libopus", "x.opus"), ("alac", "x.mov")])
def test_what_libsndfile_cannot_read_goes_to_pyav(tmp_path, codec, name):
    write_av(tmp_path / name, codec, tone(48000, channels=2), 48000)
    wave, _ = load(tmp_path / name)
    assert abs(pitch(wave) - 440) < 4 and abs(len(wave) / SAMPLE_RATE - 0.6) < 0.1
    assert abs(info(tmp_path / name).duration - 0.6) < 0.1


def test_pyav_takes_over_where_libsndfile_fails(tmp_path, monkeypatch):  # pitfall 58
    sf.write(tmp_path / "x.flac", tone(16000), 16000)
    want, _ = load(tmp_path / "x.flac")

    def broken(*_):
        raise sf.LibsndfileError(1)

    monkeypatch.setattr(audio, "_decode_soundfile", broken)
    got, _ = load(tmp_path / "x.flac")
    assert np.allclose(got, want, atol=1e-6)


def test_channels_are_averaged(tmp_path):
    sf.write(
        tmp_path / "x.wav",
        np.stack([np.full(800, 0.5), np.linspace(-0.5, 0.5, 800)], 1),
        16000,
        subtype="FLOAT",
    )
    assert np.allclose(load(tmp_path / "x.wav")[0], 0.25 + np.linspace(-0.25, 0.25, 800), atol=1e-6)


# Of an mp3 at 0.97 less than two packets are missing: that is within the format's own padding.
CUTS = [
    (s, keep) for s in ("wav", "flac", "ogg", "mp3") for keep in (0.5, 0.9, 0.97) if (s, keep) != ("mp3", 0.97)
]


@pytest.mark.parametrize("suffix, keep", CUTS)
def test_truncated_files_are_refused(tmp_path, suffix, keep):
    sf.write(tmp_path / "whole.bin", tone(16000, 2.0), 16000, format={"ogg": "OGG"}.get(suffix, suffix.upper()))
    data = (tmp_path / "whole.bin").read_bytes()
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(AudioError, match=path.name):
        load(path)


@pytest.mark.parametrize("codec, name", [("aac", "x.m4a"), ("libopus", "x.opus")])
def test_truncated_files_of_pyav_formats_are_refused(tmp_path, codec, name):
    write_av(tmp_path / name, codec, tone(48000, 2.0), 48000)
    data = (tmp_path / name).read_bytes()
    (tmp_path / f"cut-{name}").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(AudioError, match="cut-"):
        load(tmp_path / f"cut-{name}")


def test_streamed_wav_of_unknown_length_is_fine(tmp_path):
    sf.write(tmp_path / "x.wav", tone(16000), 16000, subtype="PCM_16")
    data = bytearray((tmp_path / "x.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "x.wav").write_bytes(data)
    assert abs(pitch(load(tmp_path / "x.wav")[0]) - 440) < 4


def test_files_that_must_not_pass(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not a sound, but long enough to be looked at" * 100)
    sf.write(tmp_path / "header.wav", np.zeros((0, 1)), 16000)
    sf.write(tmp_path / "silent.flac", np.zeros(4000), 16000)
    sf.write(tmp_path / "dc.wav", np.full(4000, 0.3), 16000)
    sf.write(tmp_path / "nan.wav", np.array([0.1, np.nan]), 16000, subtype="FLOAT")
    sf.write(tmp_path / "inf.wav", np.array([0.1, np.inf]), 16000, subtype="FLOAT")
    wanted = {
        "empty.wav": "0 bytes",
        "text.wav": "not an audio",
        "header.wav": "no samples",
        "silent.flac": "silent",
        "dc.wav": "silent",
        "nan.wav": "NaN",
        "inf.wav": "NaN or infinite",
        "missing.wav": "no such file",
    }
    for name, reason in wanted.items():
        with pytest.raises(AudioError, match=reason) as error:
            load(tmp_path / name)
        assert name in str(error.value)
    assert len(load(tmp_path / "silent.flac", allow_silence=True)[0]) == 4000


def stretch(path, place):
    recording = Recording(path)
    return recording.read(*place(recording.frames))


def around(n):
    return n // 3, n // 3 + 1234


@pytest.mark.parametrize("rate, channels", [(16000, 1), (16000, 2), (44100, 1)])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_stretch_is_that_of_the_whole(tmp_path, suffix, rate, channels):
    path = tmp_path / f"x.{suffix}"
    noise = 0.01 * np.random.default_rng(0).normal(size=(int(1.5 * rate), channels))
    sf.write(path, tone(rate, 1.5, channels=channels) + noise, rate)
    whole = load(path)[0]
    part = stretch(path, around)
    start, stop = around(len(whole))
    assert np.array_equal(part, whole[start:stop])
    recording = Recording(path)
    assert recording.frames == len(whole) and np.array_equal(recording.read(start), whole[start:])
    recording = Recording(path)
    recording.read(*around(recording.frames))
    assert (recording._whole is None) == (rate == 16000 and suffix in ("wav", "flac"))  # nothing else was decoded


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_stretch_of_a_truncated_file_is_refused_or_right(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    sf.write(path, 0.1 * np.random.default_rng(0).normal(size=48000).clip(-3, 3), 16000)
    whole = load(path)[0]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="truncated"):
        stretch(path, lambda n: (n - 3000, n))
    try:  # a FLAC begins with its length, so its first second is what it was
        assert np.array_equal(stretch(path, lambda n: (0, 16000)), whole[:16000])
    except AudioError as error:
        assert suffix == "wav" and "truncated" in str(error)


def test_a_silent_stretch_is_a_pause_but_a_silent_recording_is_not(tmp_path):
    wave = np.zeros(16000, np.float32)
    sf.write(tmp_path / "silent.wav", wave, 16000)
    wave[12000:] = 0.1 * np.random.default_rng(0).normal(size=4000)
    sf.write(tmp_path / "pause.wav", wave, 16000)
    assert not stretch(tmp_path / "pause.wav", lambda n: (0, 8000)).any()
    with pytest.raises(AudioError, match="silent"):
        stretch(tmp_path / "silent.wav", lambda n: (0, 8000))


@pytest.mark.parametrize("wave", [[0.0, 1.5, -2.0, 0.5], [0.0, 1.5, -0.5], [0.0, 0.5, -2.0]])
def test_float_files_beyond_one_are_clipped(tmp_path, wave):
    sf.write(tmp_path / "x.wav", np.array(wave), 16000, subtype="FLOAT")
    assert load(tmp_path / "x.wav")[0].tolist() == [min(max(x, -1.0), 1.0) for x in wave]


def test_one_step_of_16_bits_is_heard(tmp_path):
    wave = np.zeros(4000, np.int16)
    wave[100] = 1
    sf.write(tmp_path / "x.wav", wave, 16000)
    assert load(tmp_path / "x.wav")[0][100] == 1 / 32768


def test_save_refuses_what_it_would_damage(tmp_path):
    for bad in (np.array([0.0, 1.2]), np.array([np.nan]), np.zeros(0), np.zeros((2, 3))):
        with pytest.raises(AudioError):
            save(tmp_path / "x.flac", bad)
    assert list(tmp_path.iterdir()) == []


@given(st.integers(1, 4000), st.integers(0, 5))
def test_save_and_load_agree_to_half_a_step(tmp_path_factory, n, seed):
    wave = np.random.default_rng(seed).uniform(-1, 0.9999, n).astype(np.float32)
    path = save(tmp_path_factory.mktemp("a") / "x.flac", wave)
    back = load(path, allow_silence=True)[0]
    assert len(back) == n and np.abs(back - wave).max() <= 0.5 / 32768


def test_the_extremes_can_be_saved(tmp_path):
    back = load(save(tmp_path / "x.wav", np.array([-1.0, 0.0, 1.0])))[0]
    assert back.tolist() == [-1.0, 0.0, 32767 / 32768]


def test_resample_leaves_no_ghost_above_the_limit():
    high = np.sin(2 * np.pi * 11000 * np.arange(48000) / 48000).astype(np.float32)  # would fold to 5 kHz
    assert np.abs(resample(high, 48000)[500:-500]).max() < 1e-3
    assert np.array_equal(resample(high, 16000), high)


@pytest.mark.parametrize("rate", [44101, 8001, 15999])  # hardly anything in common with 16 kHz
def test_odd_rates_keep_pitch_and_duration(rate):
    wave = resample(tone(rate)[:, 0], rate)
    assert len(wave) == pytest.approx(0.6 * SAMPLE_RATE, abs=2) and abs(pitch(wave) - 440) < 4


def test_player_embeds_a_small_sound():
    html = play(0.1 * tone(16000)[:, 0], "a tone").data
    assert "audio/mpeg;base64" in html and "a tone" in html and len(html) < 40_000


def test_player_scales_down_what_would_be_cut_off():
    wave = tone(16000)[:, 0]
    sounds = []
    for factor in (1, 5):  # the second goes to 2.1
        data = base64.b64decode(re.search('base64,([^"]+)', play(factor * wave).data)[1])
        sounds.append(load("player.mp3", data=data)[0])
    assert np.corrcoef(*sounds)[0, 1] > 0.999


def test_spectrogram_shows_a_tone_at_its_frequency():
    image = plot_spectrogram(tone(8000, hertz=1000.0)[:, 0], sample_rate=8000).images[0]
    start, end, lowest, highest = image.get_extent()
    assert (start, lowest, highest) == (0, 0, 4000) and end == pytest.approx(0.6)
    loudest = image.get_array().mean(axis=1).argmax()
    assert loudest / (len(image.get_array()) - 1) * highest == pytest.approx(1000, abs=41)


# Piece by piece


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 16_001, 999_983])
@pytest.mark.parametrize("pieces", [1, 2, 7, 40])
def test_resampled_pieces_are_the_resampled_whole(rate, pieces):
    wave = 0.1 * np.random.default_rng(0).normal(size=(2, int(1.3 * rate) + 5)).astype(np.float32)
    got = np.concatenate(list(resample_stream(np.array_split(wave, pieces, axis=1), rate)), axis=1)
    want = resample(wave, rate)
    assert got.shape == want.shape and np.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_streamed_pieces_are_the_decoded_whole(tmp_path, name):
    wave = 0.1 * np.random.default_rng(0).normal(size=(50_000, 2))
    sf.write(tmp_path / name, wave, 44_100)
    want, rate = decode(tmp_path / name)
    for seconds in (0.05, 0.3, 60.0):
        pieces = list(stream(tmp_path / name, seconds))
        assert {r for _, r in pieces} == {rate}
        assert np.allclose(np.concatenate([p for p, _ in pieces], axis=1), want, atol=1e-6)


def test_a_stream_finds_what_decode_finds(tmp_path):
    sf.write(tmp_path / "a.wav", 0.1 * np.ones(20_000), 16_000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-9000])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("Dear Sir or Madam")
    (tmp_path / "head.wav").write_bytes(whole[:44])
    sf.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.2] * 100), 16_000, subtype="FLOAT")
    problems = {"cut": "truncated", "empty": "empty file", "text": "not an audio file", "nan": "are NaN"}
    for name, said in (problems | {"head": "no samples|truncated", "nowhere": "no such file"}).items():
        with pytest.raises(AudioError, match=said):
            list(stream(tmp_path / f"{name}.wav", 0.1))
