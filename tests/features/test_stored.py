"""Features on disk: the network's own, whole after a crash, never mixed up, and trained from like audio."""

import numpy as np
import pytest
import torch
import yaml

from wedefense_nb.data.batches import AudioDataset, eval_batches, loader
from wedefense_nb.data.crops import Crop
from wedefense_nb.data.manifest import Manifest, ManifestError
from wedefense_nb.features import stored as module
from wedefense_nb.features.stored import Stored, StoredDataset, extract, open_dataset, shards
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint
from wedefense_nb.models.detector import Detector
from wedefense_nb.models.layers import Identity, StatsPool
from wedefense_nb.training.loop import FitConfig, fit
from wedefense_nb.training.scoring import score


@pytest.fixture(scope="module")
def handful(samples):
    partial = samples.subset(kind="partial").utterances.utt[:6].tolist()
    return samples.subset(utt=samples.utterances.utt[:10].tolist() + partial)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_stored_features_are_those_of_the_network(tiny, handful, tmp_path, layers):
    front = Upstream(tiny, layers=layers, frozen=False).train()
    stored = extract(front, handful, tmp_path, batch_size=3, shard_size=5)
    plan = eval_batches(handful, 4)
    sounds = loader(AudioDataset(handful), plan)
    shards_of_them = loader(open_dataset(stored), plan, workers=1)
    for heard, read in zip(sounds, shards_of_them, strict=True):
        assert heard.utts == read.utts and torch.equal(heard.labels, read.labels)
        with torch.no_grad():
            (live, frames) = front.eval()(heard.wave, heard.lengths)
            (disk, same) = Stored.of(tmp_path)(read.wave, read.lengths)
        assert live.shape == disk.shape and torch.equal(frames, same)
        assert torch.allclose(live, disk, rtol=1e-3, atol=1e-3)
    again = Manifest.read(tmp_path)
    assert again.utterances.utt.tolist() == handful.utterances.utt.tolist()
    assert len(again.segments) == len(handful.segments)


def test_interrupted_extraction_continues(tiny, handful, tmp_path, monkeypatch):
    front = Upstream(tiny)
    save = module.save_file
    made = []

    def crash(tensors, path):
        save(tensors, path)
        made.append(path)
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        extract(front, handful, tmp_path, shard_size=5)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1, "half a shard has another name"
    extract(front, handful, tmp_path, shard_size=5)
    assert len(made) == 2 + len(shards(len(handful), 5)) - 1, "the whole shard was not made again"
    whole = extract(front, handful, tmp_path / "other", shard_size=5)
    assert all(
        np.array_equal(open_dataset(whole)[0, i].wave, StoredDataset(Manifest.read(tmp_path))[0, i].wave)
        for i in range(len(handful))
    )


def test_other_networks_and_recordings_are_refused(tiny, handful, tmp_path):
    extract(Upstream(tiny), handful, tmp_path)
    other = Upstream(tiny_checkpoint(tmp_path / "other.pt", seed=1))
    for front, manifest in (
        (other, handful),
        (Upstream(tiny), handful.subset(kind="partial")),
        (Upstream(tiny, layers="all"), handful),
    ):
        with pytest.raises(ManifestError, match="another network or other recordings"):
            extract(front, manifest, tmp_path)


def test_overflow_is_an_error(tiny, handful, tmp_path):
    front = Upstream(tiny)
    front.encoder.norm.weight.data.fill_(1e6)
    with pytest.raises(OverflowError, match="half precision"):
        extract(front, handful, tmp_path)


def test_crops_carry_label_and_segments(tiny, handful, tmp_path):
    data = open_dataset(extract(Upstream(tiny), handful, tmp_path), Crop(0.3, seed=2))
    seen = set()
    for epoch in range(5):
        for i in range(len(handful)):
            item = data[epoch, i]
            assert item.wave.shape == (15, 32) and item.wave.dtype == np.float32
            if item.utt in data.fakes:
                assert (len(item.fakes) > 0) == (item.label == 0)
                seen.add(item.label)
            assert np.array_equal(item.wave, data[epoch, i].wave)
    assert seen == {0, 1}


def test_crops_come_from_all_over_the_recording(tiny, handful, tmp_path):
    stored = extract(Upstream(tiny), handful, tmp_path)
    whole = open_dataset(stored)[0, 0].wave
    data = open_dataset(stored, Crop(0.3, seed=2))
    starts = set()
    for epoch in range(10):
        crop = data[epoch, 0].wave
        found = [i for i in range(len(whole) - 14) if np.array_equal(whole[i : i + 15], crop)]
        assert len(found) == 1
        starts.add(found[0])
    assert len(starts) > 5


def test_crop_policies_are_those_of_sound(tiny, handful, tmp_path):
    stored = extract(Upstream(tiny), handful, tmp_path)
    whole = open_dataset(stored)
    seconds = handful.utterances.duration.median()
    lengths = [len(whole[0, i].wave) for i in range(len(handful))]
    n = round(seconds * 50)
    assert min(lengths) < n < max(lengths)
    for policy in ("random", "start", "tile", "zero", "start+tile"):
        data = open_dataset(stored, Crop(seconds, policy, "keep", 1))
        for i, length in enumerate(lengths):
            item = data[0, i]
            all_of_it = whole[0, i].wave
            assert len(item.wave) == (n if length >= n or "tile" in policy or "zero" in policy else length)
            assert item.label == whole[0, i].label
            if length <= n or "start" in policy:
                assert np.array_equal(item.wave[:length], all_of_it[:n])
            if length < n and "tile" in policy:
                assert np.array_equal(item.wave[length : 2 * length], all_of_it[: n - length])
            if length < n and "zero" in policy:
                assert not item.wave[length:].any()
    with pytest.raises(ValueError, match="policy is one of random, start"):
        open_dataset(stored, Crop(1.0, "middle"))


def test_only_the_crop_is_read(tiny, handful, tmp_path, monkeypatch):
    read = []
    opened = module.safe_open

    class Spy:
        def __init__(self, part):
            self.part = part
            self.get_shape = part.get_shape

        def __getitem__(self, where):
            read.append(self.part[where])
            return read[-1]

    class File:
        def __init__(self, *args):
            self.file = opened(*args)

        def get_slice(self, name):
            return Spy(self.file.get_slice(name))

    stored = extract(Upstream(tiny), handful, tmp_path)
    monkeypatch.setattr(module, "safe_open", File)
    open_dataset(stored, Crop(0.1))[0, 0]
    open_dataset(stored)[0, 0]
    assert [len(x) for x in read] == [5, len(open_dataset(stored)[0, 0].wave)]


def test_shards_cover_everything_once():
    plan = shards(1001, 256)
    assert [i for _, members in plan for i in members] == list(range(1001)) and len(plan) == 4
    assert len({name for name, _ in plan}) == 4 and sorted(plan) == plan


def test_stored_features_train_like_audio(few, tmp_path):
    """The recipe of a frozen front end: extract once, then fit on the files."""
    front = Upstream(tiny_checkpoint(tmp_path / "tiny.pt"))
    sounds = {name: few.subset(split=name) for name in ("train", "dev")}
    train, dev = (extract(front, split, tmp_path / name) for name, split in sounds.items())
    torch.manual_seed(0)
    on_disk = Detector(Stored.of(train.root), Identity(32), StatsPool(), 8)
    config = FitConfig(epochs=2, batch_size=4, crop=None, lr=2e-3, average=1, seed=3, augment="specaugment")
    result = fit(on_disk, train, dev, config, out=tmp_path / "run")
    assert len(result.history) == 2 and 0 <= result.dev_error <= 1
    live = Detector(front, Identity(32), StatsPool(), 8)
    of_the_front = {name: w for name, w in live.state_dict().items() if name.startswith("front.")}
    live.load_state_dict(result.model.state_dict() | of_the_front)
    difference = score(result.model, dev).score - score(live, sounds["dev"]).score
    assert difference.abs().max() < 0.01


def test_front_end_refuses_other_shapes(tmp_path):
    (tmp_path / "features.yaml").write_text(yaml.safe_dump({"dim": 32, "states": 0, "hop": 320}))
    for shape in ((1, 5, 16), (1, 5, 3, 32)):
        with pytest.raises(ValueError, match="this model wants 32"):
            Stored.of(tmp_path)(torch.zeros(shape), torch.tensor([5]))
