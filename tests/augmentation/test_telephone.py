"""The telephone and its lost packets: band, alignment, statistics, padding, draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.augmentation.telephone import PacketLoss, Telephone, draw_losses, packet_sources
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item
from wedefense_nb.data.manifest import utt_rng


def noise(n, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def batch_of(*waves):
    return collate([Item(f"u{i}", w, 0, np.array([[0.01, 0.05]])) for i, w in enumerate(waves)])


TRANSFORMS = {"either": Telephone(), "none": Telephone(law=None), "loss": PacketLoss((0.1, 0.4))}
TRANSFORMS["silent"] = PacketLoss(conceal=False)
each = pytest.mark.parametrize("name", TRANSFORMS)


@each
@pytest.mark.parametrize("n", [1, 17, 1600])
def test_short_and_silent_recordings(name, n):
    for wave in (np.zeros(n, np.float32), np.ones(n, np.float32)):
        out = TRANSFORMS[name](batch_of(wave)).wave
        assert out.shape == (1, n) and torch.isfinite(out).all() and out.abs().max() <= 1.0


def test_the_band_is_the_telephones():
    out = Telephone(law=None)(batch_of(noise(160000))).wave[0]
    power = torch.stft(out, 1024, window=torch.hann_window(1024), return_complex=True).abs().square().mean(1)
    hertz = torch.linspace(0, 8000, 513)
    inside = power[(hertz > 500) & (hertz < 3200)].mean()
    assert power[hertz < 150].max() < 1e-3 * inside and power[hertz > 4000].max() < 1e-4 * inside
    edges = [power[(hertz - edge).abs().argmin()] / inside for edge in (300, 3400)]
    assert all(0.1 < e < 0.5 for e in edges)  # half of the amplitude, a quarter of the power


@pytest.mark.parametrize("law", ["mulaw", "alaw", None])
def test_a_click_stays_to_the_sample(law):
    for at in (0, 1234, 1235, 3999):
        click = np.zeros(4000, np.float32)
        click[at] = 0.9
        assert abs(int(Telephone(law=law)(batch_of(click)).wave.abs().argmax()) - at) <= 1


def test_tone_in_the_band_survives_with_its_phase():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    out = Telephone(law=None)(batch_of(tone)).wave[0].numpy()
    assert np.abs(out - tone)[500:-500].max() < 5e-3


def test_each_recording_gets_its_own_law():
    batch = batch_of(*[noise(4000, 7)] * 16)
    rows = Telephone(law="either")(batch).wave
    laws = {law: Telephone(law=law)(batch).wave[0] for law in ("mulaw", "alaw")}
    kinds = ["mulaw" if torch.allclose(r, laws["mulaw"], atol=1e-4) else "alaw" for r in rows]
    assert set(kinds) == {"mulaw", "alaw"}
    assert all(torch.allclose(r, laws[k], atol=1e-2) for r, k in zip(rows, kinds, strict=True))


@given(st.floats(0.01, 0.5), st.floats(1, 6), st.integers(0, 99))
def test_losses_have_the_share_and_the_runs_that_were_asked_for(rate, burst, seed):
    burst = max(burst, rate / (1 - rate))
    lost = draw_losses(utt_rng("x", seed), 60_000, rate, burst)
    edges = np.flatnonzero(np.diff(np.r_[0, lost.astype(int), 0]))
    runs = edges[1::2] - edges[::2]
    assert abs(lost.mean() / rate - 1) < 0.3 and abs(runs.mean() / burst - 1) < 0.25


def test_losses_at_the_limits():
    assert not draw_losses(utt_rng("x"), 100, 0.0, 2.0).any()
    assert len(draw_losses(utt_rng("x"), 0, 0.2, 2.0)) == 0
    first = np.mean([draw_losses(utt_rng(f"x{i}"), 1, 0.3, 5.0)[0] for i in range(3000)])
    assert abs(first - 0.3) < 0.04  # the start is like any other moment


def test_sources_by_hand():
    lost = np.array([[True, False, True, True, True, True, False, True], [False] * 8])
    source, gain = packet_sources(lost, 0.4)
    assert source[0].tolist() == [0, 1, 1, 1, 1, 1, 6, 6]
    assert np.allclose(gain[0], [0, 1, 1, 0.6, 0.2, 0, 1, 1])
    assert source[1].tolist() == list(range(8)) and gain[1].tolist() == [1] * 8


def test_concealment_repeats_and_silence_does_not():
    wave = noise(16000)
    kept, silent = (
        PacketLoss((0.3, 0.3), conceal=c, seed=1)(batch_of(wave)).wave[0].view(-1, 320) for c in (True, False)
    )
    packets = torch.from_numpy(wave).view(-1, 320)
    lost = (silent == 0).all(1)
    assert 0.1 < lost.float().mean() < 0.5
    assert torch.equal(silent[~lost], packets[~lost]) and torch.equal(kept[~lost], packets[~lost])
    first = int((lost[1:] & ~lost[:-1]).nonzero()[0]) + 1
    assert torch.equal(kept[first], packets[first - 1])


def test_repetitions_fade_by_a_fifth_every_ten_milliseconds():
    loss = PacketLoss((0.5, 0.5), burst=8.0, seed=2)
    out = loss(batch_of(np.full(64000, 0.5, np.float32))).wave[0].view(-1, 320)
    gains = sorted({round(float(x), 3) for x in out[:, 0] / 0.5})
    assert gains == pytest.approx([0, 0.2, 0.6, 1], abs=1e-3)  # a packet is 20 ms long


def test_shares_of_losses_are_drawn_and_short_last_packets_get_lost_too():
    b = batch_of(*[np.full(3201, 0.5, np.float32)] * 400)  # ten packets and one sample
    out = PacketLoss((0.0, 0.5), burst=1.0, conceal=False)(b).wave
    lost = (out[:, :3200].view(400, 10, 320) == 0).all(2)
    assert lost.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (out[:, -1] == 0).float().mean().item() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("n", [4000, 4001])
def test_the_end_is_heard(n):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(n) / 16000 + 1).astype(np.float32)
    alone = Telephone(law=None)(batch_of(tone)).wave[0]
    longer = Telephone(law=None)(batch_of(np.pad(tone, (0, 400)))).wave[0, :n]
    assert alone[-20:].abs().max() > 0.1 and torch.allclose(alone[:-40], longer[:-40], atol=0.01)
    assert alone[-1].abs() > 0.01


def test_no_loss_changes_nothing():
    batch = batch_of(noise(5001))
    assert torch.equal(PacketLoss((0.0, 0.0))(batch).wave, batch.wave)


def test_wrong_options_are_refused():
    for call in (
        lambda: Telephone(law="ulaw"),
        lambda: Telephone((3400, 300)),
        lambda: Telephone((300, 4000)),
        lambda: PacketLoss((0, 0.9)),
        lambda: PacketLoss((0.3, 0.1)),
        lambda: PacketLoss(burst=0.5),
        lambda: PacketLoss(packet=0.0),
    ):
        with pytest.raises(ValueError):
            call()
