"""Sinc filters: what they pass, their mirror image, padding, pieces, fixed length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.features.sinc import (
    FixedLength,
    SincBank,
    plot_flow,
    receptive_field,
    sinc_edges,
    sinc_filters,
)


def noise(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", ["mel", "inverse_mel", "linear"])
def test_a_dft_finds_each_band_where_its_edges_are(scale):  # pitfall 47
    edges = sinc_edges(12, scale)  # one bin a hertz
    n_fft = 16000
    gain = torch.fft.rfft(sinc_filters(edges, 1025).double(), n_fft).abs()
    for i, g in enumerate(gain):
        passed = (g > 0.5).nonzero().flatten()
        assert abs(passed[0] - edges[i]) < 3 and abs(passed[-1] - edges[i + 1]) < 3
        assert g[round(float(edges[i : i + 2].mean()))] == pytest.approx(1, abs=0.01)
    # neighbours share their edge: nothing is lost or doubled
    assert gain.sum(0)[100:7900].sub(1).abs().max() < 0.02


def test_inverse_mel_is_a_mirror_and_no_sign_change():  # pitfall 47
    mel = sinc_filters(sinc_edges(20), 129)
    inverse = sinc_filters(sinc_edges(20, "inverse_mel"), 129)
    signs = (-1.0) ** torch.arange(129)
    assert torch.allclose(inverse, mel.flip(0) * signs, atol=1e-6)
    assert torch.nn.functional.cosine_similarity(inverse, mel.flip(0)).abs().max() < 0.3
    both = sinc_edges(20, "inverse_mel") + sinc_edges(20).flip(0)
    assert torch.allclose(both, torch.full((21,), 8000.0).double())


def test_filters_have_a_middle_tap_and_even_sizes_become_odd():
    edges = sinc_edges(5)
    filters = sinc_filters(edges, 129)
    assert torch.allclose(filters, filters.flip(1), atol=1e-7)  # symmetric: no delay
    assert torch.equal(sinc_filters(edges, 128), filters)
    assert SincBank(edges, 128).size == 129  # AASIST asks for 128


def test_aasists_edges_to_the_top():
    edges = sinc_edges(70)
    assert edges[[0, 1, 2, 69, 70]].tolist() == pytest.approx([0, 25.66, 52.26, 7692.4, 8000], abs=0.05)


@given(n=st.integers(300, 4000), extra=st.integers(0, 500), group=st.sampled_from([1, 3]))
def test_padding_and_pieces_change_nothing(n, extra, group):
    bank = SincBank(sinc_edges(9), 65, group)
    wave = noise(1, n)
    lengths = torch.tensor([n])
    whole, frames = bank(wave, lengths)
    assert frames.item() == whole.shape[1] == (n - 64) // 3 and whole.shape[2] == bank.dim == 9 // group
    literal = torch.nn.functional.conv1d(wave[:, None], bank.filters).abs()
    literal = torch.nn.functional.max_pool2d(literal[:, None], (group, 3))[:, 0].transpose(1, 2)
    bank.at_once = 30
    in_pieces, _ = bank(torch.nn.functional.pad(wave, (0, extra), value=5.0), lengths)
    assert torch.allclose(whole, literal, atol=1e-6)
    assert torch.allclose(in_pieces[:, : whole.shape[1]], whole, atol=1e-6)
    assert not in_pieces[:, whole.shape[1] :].any()


def test_the_filter_mask_is_for_training_and_for_each_recording():
    bank = SincBank(sinc_edges(70), mask=20)
    wave = noise(1, 2000).expand(4, -1)
    lengths = torch.full((4,), 2000)
    assert bank.eval()(wave, lengths)[0].amax(1).gt(0).all()
    silent = bank.train()(wave, lengths)[0].amax(1) == 0
    assert 0 < silent.sum() and silent.sum(1).max() < 20 and len(set(silent.sum(1).tolist())) > 1
    few = SincBank(sinc_edges(8), 33, mask=3).train()  # 0, 1 or 2 of eight
    silent_of_eight = few(noise(1, 200).expand(300, -1), torch.full((300,), 200))[0].amax(1) == 0
    assert set(silent_of_eight.sum(1).tolist()) == {0, 1, 2} and silent_of_eight.any(0).all()
    for row in [*silent, *silent_of_eight]:  # neighbours
        where = row.nonzero().flatten()
        assert len(where) == 0 or where[-1] - where[0] + 1 == len(where)


def test_fixed_length_cuts_or_repeats_each_recordings_own_samples():
    front = FixedLength(SincBank(sinc_edges(9), 33), 1000)
    wave = noise(2, 1500)
    x, frames = front(wave, torch.tensor([1500, 300]))
    short, _ = front.front(wave[1:, :300].repeat(1, 4)[:, :1000], torch.tensor([1000]))
    long, _ = front.front(wave[:1, :1000], torch.tensor([1000]))
    assert frames.tolist() == [(1000 - 32) // 3] * 2 and torch.equal(x[1:], short) and torch.equal(x[:1], long)


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="rising"):
        sinc_filters(torch.tensor([100.0, 50.0]), 9)
    with pytest.raises(ValueError, match="within 0 and 8000"):
        sinc_filters(torch.tensor([100.0, 9000.0]), 9)
    with pytest.raises(ValueError, match="unknown scale 'bark'.*'inverse_mel'"):
        sinc_edges(20, "bark")
    with pytest.raises(ValueError, match="131 to"):
        SincBank(sinc_edges(20))(noise(1, 200), torch.tensor([130]))


def test_receptive_field_is_what_a_change_reaches():
    field, step = receptive_field([(129, 1), (3, 3)])
    bank = SincBank(sinc_edges(6))
    wave = noise(1, 1000)
    base = bank(wave, torch.tensor([1000]))[0]
    other = wave.clone()
    other[0, 500] += 1.0
    changed = (bank(other, torch.tensor([1000]))[0] != base).any(-1)[0].nonzero().flatten()
    assert changed[0] * step >= 500 - field + 1 - step and changed[-1] * step <= 500 and (field, step) == (131, 3)


def test_the_figure_of_a_flow_names_its_stages():
    ax = plot_flow([("wave", 64600, 1), ("envelope", 21490, 23)])
    assert {"wave", "64,600\n× 1", "21,490\n× 23"} <= {t.get_text() for t in ax.texts}
