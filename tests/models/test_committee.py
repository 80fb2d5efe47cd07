"""A committee is a detector; its members are trained as if each were alone."""

import copy

import pytest
import torch
import yaml

from wedefense_nb.augmentation.spectrum import spec_draws
from wedefense_nb.models.committee import MEMBERS, Committee
from wedefense_nb.models.detector import build, load_model, save_model, set_progress, with_head

SMALL = [{"name": "bands", "n_mels": 24}, {"name": "bands", "n_mels": 40, "embed_dim": 8, "head": "am"}]


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def heard():
    return noise(3, 9000), torch.tensor([9000, 7000, 5000]), torch.tensor([0, 1, 0])


def small(members=SMALL):
    torch.manual_seed(0)
    return build("committee", members=members)


def test_logits_loss_and_embedding_are_those_of_the_members(heard):
    wave, lengths, labels = heard
    model = small()
    each = model.members
    logits = torch.stack([m(wave, lengths) for m in each])
    assert torch.allclose(model(wave, lengths), logits.mean(0), atol=1e-6)
    assert torch.allclose(model.opinions(wave, lengths), logits, atol=1e-6)
    assert torch.equal(model.embed(wave, lengths), torch.cat([m.embed(wave, lengths) for m in each], 1))
    weights = torch.tensor([0.4, 1.6])
    losses = [m.loss(wave, lengths, labels, weights) for m in each]
    assert torch.allclose(model.loss(wave, lengths, labels, weights), (losses[0] + losses[1]) / 2)
    assert model.head.dim == 40


def test_no_member_is_lazy(heard):
    """What one member learns from does not depend on what the other says, however sure that one is."""
    wave, lengths, labels = heard
    model = small()
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.members[0].head.out.weight.mul_(100)
    slopes = []
    for net in (model, sure):
        net.loss(wave, lengths, labels).backward()
        slopes.append(net.members[1].embedding.weight.grad)
    assert torch.equal(*slopes) and slopes[0].abs().sum() > 0
    alone = copy.deepcopy(model.members[1])
    alone.zero_grad()
    alone.loss(wave, lengths, labels).backward()
    assert torch.allclose(alone.embedding.weight.grad / 2, slopes[0], atol=1e-7)


def test_what_covers_features_reaches_every_member(heard):
    wave, lengths, _ = heard
    seen = []

    def change(feats, frames):
        seen.append(feats.shape[-1])
        return feats * 0

    small().embed(wave, lengths, change)
    assert seen == [24, 40]
    assert spec_draws(["a"], 0, 0) is not None


def test_score_takes_the_prior_from_those_that_learned_it():
    model = small([{"name": "bands"}, {"name": "bands", "head": "p2sgrad"}])
    model.log_prior_odds.fill_(-2.0)
    logits = torch.tensor([[0.0, 1.0]])
    assert model.score(logits).item() == 1.0 + 2.0 / 2 and not model.head.log_odds
    both = small([{"name": "bands"}, {"name": "bands", "head": "softmax"}])
    both.log_prior_odds.fill_(-2.0)
    assert both.score(logits).item() == 3.0 and both.head.log_odds


def test_everything_in_a_file_once_and_back(tmp_path, heard):
    wave, lengths, _ = heard
    model = small(
        [{"name": "bands", "head": "oc_softmax", "head_options": {"centres": 2}}, {"name": "bands"}]
    ).eval()
    names = list(model.state_dict())
    assert len(names) == len(set(names)) and sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for m in model.members for p in m.parameters()
    )
    back = load_model(save_model(model, tmp_path))
    assert torch.equal(back(wave, lengths), model(wave, lengths)) and back.config == model.config
    assert back.config["members"][0]["head_options"] == {"centres": 2}
    assert back.config["members"][1]["embed_dim"] == 32  # all options are written down, so defaults may change


def test_copies_have_heads_of_their_own(heard):
    wave, lengths, _ = heard
    model = small()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert model(wave, lengths).abs().sum() > 0 and not twin(wave, lengths).any()


def test_heads_of_all_members_can_be_exchanged(tmp_path, heard):
    wave, lengths, labels = heard
    model = build("committee", members=SMALL, head="oc_softmax")
    assert [type(m.head).__name__ for m in model.members] == ["OCSoftmaxHead"] * 2
    assert model.loss(wave, lengths, labels) > 0
    back = load_model(save_model(model.eval(), tmp_path))
    assert torch.equal(back(wave, lengths), model(wave, lengths))
    assert isinstance(with_head(model, "focal"), Committee) and not model.head.log_odds
    set_progress(model, 0.5)
    assert {m.head.progress for m in model.members} == {0.5}


def test_committees_nest_and_the_default_hears_two_ways(heard):
    wave, lengths, labels = heard
    model = small([{"name": "committee", "members": SMALL}, {"name": "bands"}])
    assert model.embed(wave, lengths).shape == (3, 40 + 32) and model.loss(wave, lengths, labels) > 0
    want = [m.members if isinstance(m, Committee) else m for m in model.members]
    inner = torch.stack([m(wave, lengths) for m in want[0]]).mean(0)
    assert torch.allclose(model(wave, lengths), (inner + want[1](wave, lengths)) / 2, atol=1e-6)
    default = build("committee")
    assert [m["feature"] for m in default.config["members"]] == [m["feature"] for m in MEMBERS]


@pytest.mark.parametrize(
    "members, word",
    [
        ([], "list of detectors"),
        ("bands", "list of detectors"),
        ({"name": "bands"}, "list of detectors"),
        ([{"n_mels": 3}], "with its name"),
        (["bands"], "with its name"),
        ([{"name": "band"}], "did you mean 'bands'"),
        ([{"name": "bands", "mels": 3}], "n_mels"),
        ([{"name": "frame_linear"}], "unknown detector"),
    ],
)
def test_members_that_cannot_be_are_refused(members, word):
    with pytest.raises(ValueError, match=word):
        build("committee", members=members)


def test_a_strangers_file_is_refused_in_one_line(tmp_path):
    save_model(small(), tmp_path)
    path = tmp_path / "config.yaml"
    fine = yaml.safe_load(path.read_text())
    huge = {"name": "bands", "embed_dim": 10**9}
    for members in ([huge], 7, [3], [{"name": "committee", "members": "x"}], [{"name": 5}], [{"name": [1]}]):
        path.write_text(yaml.safe_dump(fine | {"members": members}))
        with pytest.raises(ValueError, match="builds no detector"):
            load_model(tmp_path)
    path.write_text("name: committee\nmembers: " + "[{name: committee, members: " * 3000 + "x" + "}]" * 3000)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_model(tmp_path)
