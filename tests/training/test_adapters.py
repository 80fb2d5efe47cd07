"""Adapters change nothing until they learn, are never looked past, and can be kept alone or folded in."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from tests.conftest import power_cut
from tests.training.runs import Stop, weights
from wedefense_nb.features.fast_encoder import linear
from wedefense_nb.features.pretrained import BASE, LARGE, TINY
from wedefense_nb.features.upstreams import tiny_checkpoint
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.training import loop
from wedefense_nb.training.adapters import adapt, check_adapter, load_adapter, merged, save_adapter
from wedefense_nb.training.loop import FitConfig, fit
from wedefense_nb.training.selection import learned_state
from wedefense_nb.training.stages import fit_stages, make_stages, part_names, thaw
from wedefense_nb.use.export import deployable

QUICK = FitConfig(epochs=1, batch_size=8, crop=0.4, windows=0.4, balance=True, average=1, lr=5e-3, save_every=2)
WAVE = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([8000, 5000, 700])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("upstream") / "tiny.pt")


@pytest.fixture(scope="module")
def few(splits):
    parts = []
    for part, n in zip(splits, (20, 4), strict=True):
        utts = [u for label in ("bonafide", "spoof") for u in part.subset(label=label).utterances.utt[:n]]
        parts.append(part.subset(utt=utts))
    return parts


def tiny(upstream=None, seed=0, **options):
    """A linear head on the tiny upstream."""
    torch.manual_seed(seed)
    return build(
        "ssl_linear", upstream=str(upstream) if upstream else asdict(TINY), pool="stats", **options
    ).eval()


def moved(model):
    """The same model after its adapters have learned something."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(WAVE, LENGTHS)


SIZES = [
    ("wav2vec2", TINY),
    ("hubert", replace(TINY, conv_norm="group", norm_first=False, normalize=False)),
    ("wavlm", replace(TINY, relative=(32, 80))),
    ("data2vec", replace(TINY, pos_depth=2, pos_kernel=5)),
]


@pytest.mark.parametrize(("name", "config"), SIZES, ids=[name for name, _ in SIZES])
@pytest.mark.parametrize("targets", [["qkv", "out"], ["qkv", "out", "fc1", "fc2"]], ids=["attention", "all"])
def test_nothing_changes_at_the_start_and_folding_changes_nothing_at_the_end(name, config, targets):
    torch.manual_seed(0)
    model = build("ssl_mhfa", upstream=asdict(config), heads=4, compress=8, embed_dim=8).eval()
    before = logits(model)
    adapt(model, rank=3, targets=targets)
    assert torch.equal(logits(model), before)
    moved(model)
    beside = logits(model)
    assert (beside - before).abs().max() > 1e-3
    assert torch.allclose(model(WAVE, LENGTHS).detach(), beside, atol=1e-6)  # with gradients it is the same
    whole = merged(model)
    assert torch.allclose(logits(whole), beside, atol=1e-6) and "adapter" not in whole.config
    assert torch.equal(logits(model), beside)  # the original is left alone
    plain = build("ssl_mhfa", upstream=asdict(config), heads=4, compress=8, embed_dim=8)
    assert whole.state_dict().keys() == plain.state_dict().keys()
    assert not any("lora" in type(part).__module__ for part in whole.modules())


def test_a_layer_with_something_around_it_is_asked_itself():
    """The fast way through a linear layer reads its weight, which is not all that an adapted layer does."""
    model = moved(adapt(tiny(), rank=2))
    layer = model.front.encoder.layers[0].qkv
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        assert torch.equal(linear(x, layer), layer(x)) and not torch.allclose(layer(x), layer.base_layer(x))


def test_the_change_is_the_product_times_alpha_over_rank():
    model = moved(adapt(tiny(), rank=4, alpha=6.0, targets=["qkv"]))
    layer = model.front.encoder.layers[1].qkv
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape == (4, 32) and b.shape == (96, 4)
    folded = merged(model).front.encoder.layers[1].qkv
    assert torch.allclose(folded.weight - layer.base_layer.weight, 6.0 / 4 * b @ a, atol=1e-6)


@pytest.mark.parametrize(("config", "rank"), [(BASE, 8), (LARGE, 4)])
def test_as_many_weights_learn_as_the_matrices_have(config, rank):
    with torch.device("meta"):
        model = adapt(build("ssl_linear", upstream=asdict(config)), rank=rank)
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learn == config.layers * rank * 6 * config.dim + 2 * config.dim + 2


def test_what_is_frozen_stands_still_and_only_the_adapters_dropout_draws():
    model = adapt(tiny(), rank=2, dropout=0.5).train()
    drawing = [n for n, part in model.named_modules() if part.training and isinstance(part, nn.Dropout) and part.p]
    assert drawing and all(".lora_dropout." in name for name in drawing)
    assert not any(layer.training for layer in model.front.encoder.layers)
    moved(model)
    assert not torch.equal(model(WAVE, LENGTHS), model(WAVE, LENGTHS))
    quiet = moved(adapt(tiny(), rank=2)).train()
    assert torch.equal(quiet(WAVE, LENGTHS), quiet(WAVE, LENGTHS))


def test_layers_can_be_computed_twice_to_save_memory():
    gradients = []
    for twice in (False, True):
        model = moved(adapt(tiny(), rank=2)).train()
        model.front.encoder.checkpointing = twice
        calls = []
        model.front.encoder.layers[0].fc1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(WAVE, LENGTHS).sum().backward()
        assert len(calls) == 1 + twice
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0: it is a whole number, at least 1"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": 0.0}, "the one is positive"),
        ({"dropout": 1.0}, r"the other in \[0, 1\)"),
        ({"targets": ["query"]}, "unknown layer to adapt 'query'"),
        ({"targets": []}, "names no layer to adapt"),
        ({"ranks": 8}, "unknown option of adapter 'ranks': did you mean 'rank'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_adapter(**options)


def test_models_that_cannot_be_adapted_are_refused(checkpoint):
    with pytest.raises(ValueError, match="no upstream to adapt"):
        adapt(build("bands"))
    with pytest.raises(ValueError, match="has adapters already"):
        adapt(adapt(tiny()))
    model = tiny()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wedefense_nb.training.adapters.S3prlEncoder", type(model.front.encoder))
        with pytest.raises(ValueError, match="use backend='fast'"):
            adapt(model)
    with pytest.raises(ValueError, match="has no adapters: `save_model` keeps it"):
        save_adapter(model, "nowhere", base=str(checkpoint))
    assert merged(model) is model


# Kept alone, and whole


def test_an_adapter_is_kept_alone_and_found_again(checkpoint, tmp_path):
    model = moved(adapt(tiny(checkpoint), rank=2))
    model.log_prior_odds.fill_(0.7)
    folder = save_adapter(model, tmp_path / "adapter", base=str(checkpoint))
    again = load_model(folder)
    assert torch.equal(logits(again), logits(model)) and float(again.log_prior_odds) == pytest.approx(0.7)
    assert again.config == model.config and not again.training
    small, large = folder / "adapter.safetensors", save_model(model, tmp_path / "model") / "model.safetensors"
    assert small.stat().st_size < large.stat().st_size / 10
    assert torch.equal(logits(load_model(tmp_path / "model")), logits(model))  # unmerged, whole
    assert torch.allclose(logits(deployable(tmp_path / "model", raw=True)[0].model), logits(model), atol=1e-6)
    assert "adapter" not in deployable(folder, raw=True)[0].model.config


def test_an_adapter_on_a_model_folder_is_found_beside_it(tmp_path):
    first = tiny(seed=4)
    save_model(first, tmp_path / "first")
    model = moved(adapt(load_model(tmp_path / "first"), rank=2))
    folder = save_adapter(model, tmp_path / "second", base="../first")
    assert torch.equal(logits(load_adapter(folder)), logits(model))


def test_an_adapter_on_other_weights_or_a_broken_folder_is_refused(checkpoint, tmp_path):
    model = moved(adapt(tiny(checkpoint), rank=2))
    other = tiny_checkpoint(tmp_path / "other.pt", seed=9)
    folder = save_adapter(model, tmp_path / "adapter", base=str(other))
    with pytest.raises(ValueError, match="trained on other weights than those of"):
        load_model(folder)
    save_adapter(model, folder, base="nobody_knows")
    with pytest.raises(ValueError, match="neither a file, nor a folder"):
        load_model(folder)
    save_adapter(model, folder, base=str(checkpoint))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("rank: 2", "rank: 3"))
    with pytest.raises(ValueError, match="have no place in this model"):
        load_model(folder)
    (folder / "config.yaml").write_text(config[: config.index("adapter:")])
    with pytest.raises(ValueError, match="has no adapter"):
        load_model(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        load_model(folder)


def test_the_size_that_a_folder_of_somebody_else_asks_for_is_bounded(checkpoint, tmp_path):
    folder = save_adapter(adapt(tiny(checkpoint), rank=2), tmp_path / "adapter", base=str(checkpoint))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("name: ssl_linear", "name: ssl_mhfa\ncompress: 100000000"))
    with pytest.raises(ValueError, match="builds no detector"):
        load_model(folder)


# Trained


def test_an_interrupted_training_of_an_adapter_ends_at_the_same_bits(few, tmp_path):
    whole = fit(adapt(tiny(), rank=2, dropout=0.2), *few, QUICK, out=tmp_path / "whole")
    before, after = tiny().state_dict(), merged(whole.model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {f"front.encoder.layers.{i}.{part}.weight" for i in (0, 1) for part in ("qkv", "out")}
    assert changed - {"log_prior_odds"} == layers | {"head.out.weight", "head.out.bias"}
    with power_cut(loop, "_step", 3, Stop):
        fit(adapt(tiny(), rank=2, dropout=0.2), *few, QUICK, out=tmp_path / "cut")
    torch.manual_seed(5)  # the second start brings other weights, which do not count
    again = adapt(tiny(), rank=2, dropout=0.2)
    result = fit(again, *few, QUICK, out=tmp_path / "cut")
    assert torch.equal(weights(result.model), weights(whole.model)) and result.history.equals(whole.history)
    with pytest.raises(ValueError, match="model: .*'rank': 2.* before, .*'rank': 3"):
        fit(adapt(tiny(), rank=3, dropout=0.2), *few, QUICK, out=tmp_path / "cut")
    file = next((tmp_path / "whole/checkpoints").glob("epoch_*.safetensors"))
    assert file.stat().st_size < 20_000  # what learns, and not the upstream


def test_stages_thaw_adapters_by_their_word(few, tmp_path):
    model = adapt(tiny(), rank=2)
    names = [n for n, _ in model.named_parameters() if ".lora_" in n]
    assert part_names(model, "adapter") == names and len(names) == 8
    listed = [{"learn": ["head"]}, {"learn": ["adapter", "head"], "rates": {"adapter": 2.0}}]
    stages = make_stages(listed, replace(QUICK, steps=2))
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = fit_stages(model, *few, QUICK, stages, out=tmp_path)
    still = {n for n, p in result.model.named_parameters() if torch.equal(p, first[n])}
    learned = {*names, "head.out.weight", "head.out.bias"}
    assert not still & learned and still | learned == set(first)
    assert set(learned_state(model)) == learned | {"log_prior_odds"}
    thaw(model, ["top 1", "head"])
    modes = [layer.training for layer in model.train().front.encoder.layers]
    assert modes == [False, True]  # its own weights learn now, with their dropout
    with pytest.raises(ValueError, match="'adapter' means no parameter"):
        part_names(tiny(), "adapter")
