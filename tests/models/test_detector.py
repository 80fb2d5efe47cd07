"""The frame that all detectors share: its score, its names and options, its heads, its folder."""

import pytest
import torch
import yaml

from wedefense_nb.features.spectra import Fbank
from wedefense_nb.models.detector import (
    DETECTORS,
    Detector,
    Paper,
    arxiv,
    bands,
    build,
    load_model,
    options_of,
    register,
    save_model,
    set_progress,
    with_head,
)
from wedefense_nb.models.layers import MeanPool, StatsPool

WAVE = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([8000, 5000])
LABELS = torch.tensor([0, 1])


def test_the_parts_are_called_in_order():
    model = build("bands", n_mels=24).eval()
    feats, frames = model.front(WAVE, LENGTHS)
    pooled = model.pool(*model.backbone(feats, frames))
    assert torch.equal(model.embed(WAVE, LENGTHS), model.embedding(pooled))
    assert torch.equal(model(WAVE, LENGTHS), model.head(model.embedding(pooled)))


def test_a_change_of_the_features_reaches_embedding_and_loss():
    model = build("bands", n_mels=24)
    seen = []

    def cover(feats, frames):
        seen.append((feats.shape, frames.tolist()))
        return torch.zeros_like(feats)

    plain = model.loss(WAVE, LENGTHS, LABELS)
    covered = model.loss(WAVE, LENGTHS, LABELS, change=cover)
    assert covered != plain and seen == [((2, 48, 24), [48, 29])]
    same = model.embed(WAVE, LENGTHS, cover)
    assert torch.allclose(same[0], same[1])  # all features are zero


def test_class_weights_reach_the_loss():
    model = build("bands", n_mels=24)
    each = model.head.losses(model.embed(WAVE, LENGTHS), LABELS)
    got = model.loss(WAVE, LENGTHS, LABELS, torch.tensor([1.0, 3.0]))
    assert torch.allclose(got, (each[0] + 3 * each[1]) / 4)


def test_score_is_the_difference_without_the_prior():  # pitfall 3
    model = build("bands")
    z = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    model.log_prior_odds.fill_(0.5)
    assert model.score(z).tolist() == [1.5, -2.5]
    assert torch.allclose(model.score(z + 7.0), model.score(z))


def test_scores_are_full_precision():
    assert build("bands").score(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


# By name


def test_building_checks_names_and_options():
    with pytest.raises(ValueError, match="unknown detector or localizer 'nope'.*lcnn_lstm.*frame_linear"):
        build("nope")
    with pytest.raises(ValueError, match="unknown option of lcnn_lstm 'dropuot': did you mean 'dropout'"):
        build("lcnn_lstm", dropuot=0.1)


def test_ones_own_detector_can_be_registered(lent):
    lent(DETECTORS)

    @register("test_only")
    def mine(n_mels: int = 20) -> Detector:
        return Detector(Fbank(n_mels), build("bands", n_mels=n_mels).backbone, MeanPool(), 4)

    assert build("test_only", n_mels=24).config == {"name": "test_only", "n_mels": 24}


def test_options_are_the_parameters_with_their_defaults():
    assert options_of("bands") == {"n_mels": 80, "embed_dim": 32}
    assert build("bands", embed_dim=7).config == {"name": "bands", "n_mels": 80, "embed_dim": 7}


def test_every_detector_has_a_paper():
    papers = [DETECTORS.paper(name) for name in DETECTORS]  # an error where there is none
    assert all(p.link.startswith("https://") and p.source[-4:].isdigit() and p.title for p in papers)
    assert arxiv("A title", "Somebody 2020", "2001.00001").link == "https://arxiv.org/abs/2001.00001"


def test_papers_come_with_the_registration(lent):
    lent(DETECTORS).add("nameless", bands)
    with pytest.raises(ValueError, match="'nameless' has no paper: register it with paper="):
        DETECTORS.paper("nameless")
    with pytest.raises(ValueError, match="unknown detector 'nobody'"):
        DETECTORS.paper("nobody")
    paper = Paper("A title", "Somebody 2020", "https://example.org")
    assert register("named", paper)(bands) is bands and DETECTORS.paper("named") == paper


# Heads


def test_build_replaces_the_head_and_checks_its_options():
    model = build("bands", n_mels=24, head="aam", head_options={"margin": 0.4})
    assert model.head.margin == 0.4 and model.config["n_mels"] == 24
    assert model.config["head"] == "aam" and model.config["head_options"] == {"margin": 0.4}
    with pytest.raises(ValueError, match="unknown option of head aam 'margins': did you mean 'margin'"):
        build("bands", head="aam", head_options={"margins": 0.3})
    with pytest.raises(ValueError, match="unknown option of head aam 'dim'"):
        build("bands", head="aam", head_options={"dim": 5})
    with pytest.raises(ValueError, match="unknown option of head linear 'margin'"):
        build("bands", head_options={"margin": 0.3})


def test_with_head_replaces_and_keeps_the_mode():
    model = with_head(build("bands").eval(), "oc_softmax", centres=2)
    assert not model.training and not model.head.training and model.head.vectors.shape == (2, 32)
    again = with_head(model, "linear")
    assert again is model and model.config["head"] == "linear" and model.config["head_options"] == {}
    assert "head" not in build("bands").config


def test_a_head_may_be_replaced_where_no_wave_goes_in():  # features from disk
    model = with_head(build("ssl_linear", upstream={"stored": {"dim": 6, "states": 0}}), "p2sgrad")
    assert model.head.dim == 6 and model(torch.randn(2, 4, 6), torch.tensor([4, 3])).shape == (2, 2)


def test_progress_is_a_share_that_the_head_gets():
    model = build("bands", head="am")
    set_progress(model, 0.25)
    assert model.head.progress == 0.25
    set_progress(build("bands"), 0.5)  # a head without a margin does not mind
    for wrong in (3, -0.1):
        with pytest.raises(ValueError, match="share"):
            set_progress(model, wrong)


# The folder


def test_a_folder_holds_everything(tmp_path):
    model = build("bands", n_mels=24, head="oc_softmax", head_options={"centres": 2})
    model.log_prior_odds.fill_(0.3)
    save_model(model, tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (
        config
        == model.config
        == {
            "name": "bands",
            "n_mels": 24,
            "embed_dim": 32,
            "head": "oc_softmax",
            "head_options": {"centres": 2},
        }
    )
    back = load_model(tmp_path)
    assert not back.training and back.config == model.config and back.log_prior_odds == model.log_prior_odds
    assert torch.equal(back(WAVE, LENGTHS), model.eval()(WAVE, LENGTHS))


def test_wrong_weights_do_not_load_silently(tmp_path):  # pitfall 45
    save_model(build("bands", n_mels=40), tmp_path)
    (tmp_path / "config.yaml").write_text("name: bands\nn_mels: 80\nembed_dim: 32\n")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="is this a model folder"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="not made by build"):
        save_model(Detector(Fbank(), build("bands").backbone, StatsPool(), 4), tmp_path)


def test_a_configuration_may_not_ask_for_more_than_its_weights_fill(tmp_path):
    save_model(build("bands", n_mels=20, embed_dim=4), tmp_path)
    (tmp_path / "config.yaml").write_text("name: bands\nn_mels: 20\nembed_dim: 600000\n")
    with pytest.raises(ValueError, match="config.yaml: builds no detector .*far more weights"):
        load_model(tmp_path)
    (tmp_path / "config.yaml").write_text("name: bands\nn_mels: 20\nembed_dim: 5\n")
    with pytest.raises(RuntimeError, match="the weights do not fit config.yaml"):
        load_model(tmp_path)


def test_weights_must_be_all_there(tmp_path):  # pitfall 45
    from safetensors.torch import load_file, save_file

    save_model(build("bands"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.out.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key.*head.out.bias"):
        load_model(tmp_path)
