"""The frame that all detectors share: its score, its names and options, its heads, its folder."""

import sys

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
    start_from,
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


OWN = """from wedefense_nb.features.spectra import Fbank
from wedefense_nb.models.detector import Detector
from wedefense_nb.models.layers import Identity, StatsPool


def net(n_mels: int = 10, width: int = 4):
    return Detector(Fbank(n_mels), Identity(n_mels), StatsPool(), width)


def needy(n_mels):
    return net(n_mels)


def nothing():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own in the current folder, under a name that no other test has."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_detector_of_ones_own_is_built_kept_and_loaded(own, tmp_path):
    model = build(f"{own}:net", width=6, head="oc_softmax").eval()
    assert model.config["name"] == f"{own}:net" and model.config["width"] == 6 and model.config["n_mels"] == 10
    folder = save_model(model, tmp_path / "model")
    assert (folder / "code.py").read_text() == OWN
    with pytest.raises(
        ValueError, match=f"{own}:net is code that does not come with this library.*--trust {own}:net"
    ):
        load_model(folder)
    again = load_model(folder, trust=[f"{own}:net"])
    wave = 0.1 * torch.randn(1, 8000)
    lengths = torch.tensor([8000])
    assert torch.equal(again(wave, lengths), model(wave, lengths))
    (folder / "code.py").write_text(OWN + "# as it was")
    with pytest.warns(UserWarning, match="is not what it was when"):
        load_model(folder, trust=[f"{own}:net"])
    for name, options, what in [
        ("net", {"height": 3}, f"unknown option of {own}:net 'height'"),
        ("needy", {}, "needs n_mels, which have no default"),
        ("nothing", {}, "builds a int, not a Detector or a Localizer"),
        ("nott", {}, f"unknown thing in {own} 'nott'"),
    ]:
        with pytest.raises(ValueError, match=what):
            build(f"{own}:{name}", **options)
    assert build(f"{own}:needy", n_mels=7).front.dim == 7


@pytest.mark.parametrize(
    "config", ["name: {}", "name: committee\nmembers: [{{name: '{}'}}]"], ids=["it", "a member"]
)
def test_a_strangers_folder_runs_no_code(tmp_path, monkeypatch, config):
    (tmp_path / "trap.py").write_text("raise SystemExit('this code ran')\n")
    monkeypatch.chdir(tmp_path)
    folder = save_model(build("bands"), tmp_path / "model")
    for name in ("trap:spring", "os:system", "subprocess:call"):
        (folder / "config.yaml").write_text(config.format(name))
        for trust in ([], ["math:sqrt"]):  # a committee takes registered members only
            with pytest.raises(ValueError, match=f"{name} is code|unknown detector '{name}'"):
                load_model(folder, trust=trust)
    (folder / "code.py").write_text("raise SystemExit('this code ran')\n")
    (folder / "config.yaml").write_text("name: bands\n")
    load_model(folder)


def test_training_may_begin_where_another_ended(tmp_path):
    first = build("bands", n_mels=20)
    first.log_prior_odds.fill_(2.0)
    folder = save_model(first, tmp_path / "model")
    second = build("bands", n_mels=20)
    assert start_from(second, folder) == []
    assert torch.equal(second.embedding.weight, first.embedding.weight)
    heads = first.head.state_dict(), second.head.state_dict()
    assert heads[0] and all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert second.log_prior_odds == 0  # of what it will be trained on, nothing is known
    other = build("bands", n_mels=20, head="oc_softmax")
    vectors = other.head.vectors.clone()
    assert start_from(other, folder / "model.safetensors") == ["head.vectors"]
    assert torch.equal(other.head.vectors, vectors) and torch.equal(other.embedding.weight, first.embedding.weight)
    for wrong in (build("bands", n_mels=30), build("lcnn_lstm")):
        before = wrong.embedding.weight.clone()
        with pytest.raises(ValueError, match="have no place in this model, such as"):
            start_from(wrong, folder)
        assert torch.equal(wrong.embedding.weight, before)
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        start_from(second, tmp_path / "none")
