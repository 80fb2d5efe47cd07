"""Noise, babble and rooms: exact ratios, kept levels, kept times, clear errors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from wedefense_nb.augmentation.surroundings import (
    SNRS,
    AddNoise,
    Reverb,
    find_sources,
    of_kind,
    read_sources,
    read_stretch,
    reverberate,
    speech_sources,
)
from wedefense_nb.data.audio import load, save
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item
from wedefense_nb.data.manifest import Manifest

TABLE = ROOT / "data_samples" / "noise_rir.csv"
SOURCES = read_sources(TABLE)


def batch(*lengths, level=0.05):
    rng = np.random.default_rng(0)
    return collate(
        [Item(f"u{i}", (level * rng.normal(size=n)).astype(np.float32), 1) for i, n in enumerate(lengths)]
    )


def one_source(tmp_path, wave, kind="noise", name="x.wav") -> pd.DataFrame:
    sf.write(tmp_path / name, wave, 16000, subtype="FLOAT")
    return pd.DataFrame([{"id": name, "path": str(tmp_path / name), "kind": kind, "duration": len(wave) / 16000}])


@pytest.mark.parametrize("kind", SNRS)
def test_realised_ratio_and_level_of_the_transform(tmp_path, kind):
    """One source as long as the recording: what was added is known up to its size."""
    noise = (0.1 * np.random.default_rng(1).normal(size=8000)).astype(np.float32)
    sources = one_source(tmp_path, noise, kind)
    b = collate(
        [
            Item(f"u{i}", (0.02 * np.random.default_rng(i).normal(size=8000)).astype(np.float32), 1)
            for i in range(40)
        ]
    )
    out = AddNoise(sources, seed=1)(b).wave
    assert torch.allclose(out.norm(dim=1), b.wave.norm(dim=1), rtol=1e-4)  # the level is kept: no shortcut
    got = []
    for x, y in zip(b.wave.double(), out.double(), strict=True):
        of_x, of_noise = np.linalg.lstsq(np.stack([x, noise], 1), y.numpy(), rcond=None)[0]
        assert np.abs(of_x * x.numpy() + of_noise * noise - y.numpy()).max() < 1e-6
        got.append(20 * np.log10(of_x * np.linalg.norm(x) / (of_noise * np.linalg.norm(noise))))
    low, high = SNRS[kind]
    assert low - 0.1 <= min(got) < low + 0.2 * (high - low) and high - 0.2 * (high - low) < max(got) <= high + 0.1


def test_a_fixed_ratio_is_realised_to_a_tenth_of_a_decibel(tmp_path):
    noise = np.random.default_rng(1).normal(size=8000).astype(np.float32)
    b = batch(8000)
    y = AddNoise(one_source(tmp_path, noise), snr={"noise": (7.0, 7.0)})(b).wave[0].double().numpy()
    x = b.wave[0].double().numpy()
    of_x, of_noise = np.linalg.lstsq(np.stack([x, noise], 1), y, rcond=None)[0]
    assert 20 * np.log10(of_x * np.linalg.norm(x) / of_noise / np.linalg.norm(noise)) == pytest.approx(7, abs=0.1)


def test_babble_is_several_voices_of_equal_strength(tmp_path):
    """Ten voices, each a tone of its own: count the tones."""
    t = np.arange(16000) / 16000
    tones = [
        one_source(tmp_path, 0.1 * (i + 1) * np.sin(2 * np.pi * 200 * (i + 1) * t), "speech", f"{i}.wav")
        for i in range(9)
    ]
    add = AddNoise(pd.concat(tones, ignore_index=True), ["speech"])
    counts = set()
    for seed in range(40):
        power = np.abs(np.fft.rfft(add.noise("speech", 16000, np.random.default_rng(seed))))[200:2000:200]
        heard = power[power > 0.1 * power.max()]
        counts.add(len(heard))
        assert heard.max() / heard.min() < 1.01
    assert counts == {3, 4, 5, 6, 7}
    two = AddNoise(pd.concat(tones[:2], ignore_index=True), ["speech"])
    power = np.abs(np.fft.rfft(two.noise("speech", 16000, np.random.default_rng(0))))
    assert np.flatnonzero(power > 0.1 * power.max()).tolist() == [200, 400]  # both, though three were asked for


def test_kinds_are_equally_likely(tmp_path):
    parts = [one_source(tmp_path, np.ones(100) * 0.1, kind, f"{kind}.wav") for kind in SNRS]
    add = AddNoise(pd.concat(parts, ignore_index=True))
    drawn = []
    add.noise = lambda kind, n, rng: drawn.append(kind) or np.ones(n, np.float32)
    add(batch(*[50] * 900))
    assert [drawn.count(kind) for kind in SNRS] == pytest.approx([300] * 3, abs=60)


def test_stretches_of_long_and_short_sources(tmp_path):
    long = one_source(tmp_path, np.arange(40 * 16000) / 1e6, name="long.wav").path[0]
    starts = [round(float(read_stretch(long, 160, np.random.default_rng(s))[0]) * 1e6) for s in range(50)]
    assert len(set(starts)) == 50 and max(starts) > 400_000 > 200_000 > min(starts)
    got = read_stretch(long, 160, np.random.default_rng(0))
    assert got.dtype == np.float32 and np.allclose(np.diff(got), 1e-6, atol=1e-7)
    short = one_source(tmp_path, np.arange(1, 101) / 1000, name="short.wav").path[0]
    got = np.round(read_stretch(short, 350, np.random.default_rng(3)) * 1000)
    assert len(got) == 350 and set(got) == set(range(1, 101)) and set(np.diff(got)) == {1, -99}
    inside = np.round(read_stretch(short, 20, np.random.default_rng(3)) * 1000)
    assert set(np.diff(inside)) == {1}


def test_arrays_and_other_rates_are_read_as_their_first_channel(tmp_path):
    two = np.stack([np.ones(8000) * 0.5, -np.ones(8000) * 0.5], 1)
    sf.write(tmp_path / "array.wav", two, 8000)
    got = read_stretch(str(tmp_path / "array.wav"), 4000, np.random.default_rng(0))
    assert len(got) == 4000 and got[1000:3000] == pytest.approx(0.5, abs=0.01)  # the mean would be silence


@given(st.integers(0, 1000))
def test_rooms_are_convolutions_in_step_with_the_direct_path(seed):
    rng = np.random.default_rng(seed)
    rooms = [(rng.normal(size=n) * np.exp(-np.arange(n) / 30)).astype(np.float32) for n in rng.integers(1, 400, 2)]
    b = batch(900, 300)
    out = reverberate(b.wave, b.lengths, rooms)
    for x, y, n, room in zip(b.wave.numpy(), out.numpy(), (900, 300), rooms, strict=True):
        peak = np.abs(room).argmax()
        want = np.convolve(x[:n], room / room[peak])[peak : peak + n]
        assert np.abs(y[:n] - want).max() < 1e-5 and np.abs(y[n:]).max(initial=0) == 0


def test_a_click_stays_where_it_was_in_every_room():
    click = np.zeros(8000, np.float32)
    click[4000] = -0.5
    b = collate([Item("u", click, 1)])
    places = [Reverb(SOURCES, seed=s)(b).wave[0] for s in range(20)]
    assert {int(x.abs().argmax()) for x in places} == {4000} and all(x[4000] < 0 for x in places)
    assert len({float(x[4100]) for x in places}) > 5  # several rooms


def test_reverb_keeps_the_level():
    b = batch(8000, 3000)
    out = Reverb(SOURCES)(b).wave
    assert torch.allclose(out.norm(dim=1), b.wave.norm(dim=1), rtol=1e-4)
    assert not torch.allclose(out, b.wave, atol=1e-3)


def test_loud_recordings_are_limited_not_clipped():
    b = batch(8000)
    b = replace(b, wave=(b.wave * 6).clamp(-1, 1))
    for transform in (AddNoise(SOURCES, ["noise"]), Reverb(SOURCES)):
        out = transform(b).wave
        assert out.abs().max() <= 1 and int((out.abs() > 0.999).sum()) <= 2


def test_reading_tables_and_manifests(tmp_path):
    assert len(SOURCES) == 20 and set(SOURCES.kind) == {"noise", "rir"} and SOURCES.duration.dtype == float
    assert len(of_kind(SOURCES, "rir")) == 10
    voices = speech_sources(Manifest.read(ROOT / "data_samples").subset(split="train"))
    assert set(voices.kind) == {"speech"} and len(voices) == 107
    m = Manifest.read(ROOT / "data_samples").subset(utt=["S0221"])
    m.utterances["kind"] = "speech"
    assert read_sources(m).path.tolist() == [str(m.root / "audio/S0221.flac")]
    m.root = tmp_path
    m.write(tmp_path)
    save(tmp_path / "audio/S0221.flac", load(ROOT / "data_samples/audio/S0221.flac")[0])
    assert read_sources(tmp_path).id.tolist() == ["S0221"]


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="find_sources"):
        read_sources(tmp_path / "nothing.csv")
    table = pd.read_csv(TABLE)
    for change, message in (
        (table.drop(columns="kind"), r"missing columns \['kind'\]; found \['id', 'path', 'duration'\]"),
        (
            table.rename(columns={"duration": "duration_s"}),
            r"missing columns \['duration'\]; found .*'duration_s'",
        ),
        (table.drop(columns="path"), r"missing columns \['path'\]"),
        (table.assign(kind="explosion"), "explosion"),
        (table.head(0), "no rows"),
    ):
        change.to_csv(tmp_path / "t.csv", index=False)
        with pytest.raises(ValueError, match=message):
            read_sources(tmp_path / "t.csv")
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(FileNotFoundError, match="20 of 20 files are not there.*white"):
        read_sources(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="no sources of kind 'music'; there are .*noise"):
        of_kind(SOURCES, "music")
    with pytest.raises(ValueError, match="music"):
        AddNoise(SOURCES, ["music"])
    with pytest.raises(ValueError, match="need sources of kinds"):
        AddNoise(of_kind(SOURCES, "rir"))
    with pytest.raises(ValueError, match="rir"):
        Reverb(of_kind(SOURCES, "noise"))
    with pytest.raises(ValueError, match="all zeros"):
        Reverb(one_source(tmp_path, np.zeros(100), "rir"))(batch(400))


def test_published_collections_are_found_by_their_folders(tmp_path):
    files = {
        "musan/noise/free-sound/noise-0001.wav": "noise",
        "musan/music/fma/music-0001.wav": "music",
        "musan/speech/librivox/speech-0001.wav": "speech",
        "RIRS_NOISES/pointsource_noises/noise-0001.wav": "noise",
        "RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00001.wav": "rir",
        "RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_near_angla.wav": "rir",
        "RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav": "noise",
    }
    for name in [*files, "musan/other.wav"]:
        save(tmp_path / name, np.full(160, 0.1))
    found = find_sources(tmp_path)
    assert dict(zip(found.path, found.kind, strict=True)) == files and set(found.duration) == {0.01}
    found.to_csv(tmp_path / "sources.csv", index=False)
    assert len(read_sources(tmp_path / "sources.csv")) == 7
    assert set(find_sources(tmp_path / "musan/music").kind) == {"music"}
    with pytest.raises(FileNotFoundError, match="no wav or flac"):
        find_sources(tmp_path / "musan/speech/librivox/empty")
