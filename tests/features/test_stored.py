"""Features on disk: the network's own, whole after a crash, never mixed up, and trained from like audio."""

import numpy as np
import pytest
import torch
import yaml

from wedefense_nb.data.batches import AudioDataset, eval_batches, loader
from wedefense_nb.data.crops import Crop
from wedefense_nb.data.manifest import Manifest, ManifestError
from wedefense_nb.features.stored import Stored, StoredDataset, extract, open_dataset, shards
from wedefense_nb.features.upstreams import Upstream, tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pt")


@pytest.fixture(scope="module")
def few(samples):
    partial = samples.subset(kind="partial").utterances.utt[:6].tolist()
    return samples.subset(utt=samples.utterances.utt[:10].tolist() + partial)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_stored_features_are_those_of_the_network(tiny, few, tmp_path, layers):
    front = Upstream(tiny, layers=layers).train()
    stored = extract(front, few, tmp_path, batch_size=3, shard_size=5)
    plan = eval_batches(few, 4)
    for heard, read in zip(
        loader(AudioDataset(few), plan), loader(open_dataset(stored), plan, workers=1), strict=True
    ):
        assert heard.utts == read.utts and torch.equal(heard.labels, read.labels)
        with torch.no_grad():
            (live, frames) = front.eval()(heard.wave, heard.lengths)
            (disk, same) = Stored.of(tmp_path)(read.wave, read.lengths)
        assert live.shape == disk.shape and torch.equal(frames, same)
        assert torch.allclose(live, disk, rtol=1e-3, atol=1e-3)
    again = Manifest.read(tmp_path)
    assert again.utterances.utt.tolist() == few.utterances.utt.tolist() and len(again.segments) == len(
        few.segments
    )


def test_interrupted_extraction_continues(tiny, few, tmp_path, monkeypatch):
    import wedefense_nb.features.stored as module

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
        extract(front, few, tmp_path, shard_size=5)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1, "half a shard has another name"
    extract(front, few, tmp_path, shard_size=5)
    assert len(made) == 2 + len(shards(len(few), 5)) - 1, "the whole shard was not made again"
    whole = extract(front, few, tmp_path / "other", shard_size=5)
    assert all(
        np.array_equal(open_dataset(whole)[0, i].wave, StoredDataset(Manifest.read(tmp_path))[0, i].wave)
        for i in range(len(few))
    )


def test_other_networks_and_recordings_are_refused(tiny, few, tmp_path):
    extract(Upstream(tiny), few, tmp_path)
    other = Upstream(tiny_checkpoint(tmp_path / "other.pt", seed=1))
    for front, manifest in (
        (other, few),
        (Upstream(tiny), few.subset(kind="partial")),
        (Upstream(tiny, layers="all"), few),
    ):
        with pytest.raises(ManifestError, match="another network or other recordings"):
            extract(front, manifest, tmp_path)


def test_overflow_is_an_error(tiny, few, tmp_path):
    front = Upstream(tiny)
    front.encoder.norm.weight.data.fill_(1e6)
    with pytest.raises(OverflowError, match="half precision"):
        extract(front, few, tmp_path)


def test_crops_carry_label_and_segments(tiny, few, tmp_path):
    data = open_dataset(extract(Upstream(tiny), few, tmp_path), Crop(0.3, seed=2))
    seen = set()
    for epoch in range(5):
        for i in range(len(few)):
            item = data[epoch, i]
            assert item.wave.shape == (15, 32) and item.wave.dtype == np.float32
            if item.utt in data.fakes:
                assert (len(item.fakes) > 0) == (item.label == 0)
                seen.add(item.label)
            assert np.array_equal(item.wave, data[epoch, i].wave)
    assert seen == {0, 1}


def test_policies_are_those_of_sound(tiny, few, tmp_path):
    stored = extract(Upstream(tiny), few, tmp_path)
    whole = open_dataset(stored)
    seconds = few.utterances.duration.median()
    lengths = [len(whole[0, i].wave) for i in range(len(few))]
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


def test_only_the_crop_is_read(tiny, few, tmp_path, monkeypatch):
    import wedefense_nb.features.stored as module

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

    stored = extract(Upstream(tiny), few, tmp_path)
    monkeypatch.setattr(module, "safe_open", File)
    open_dataset(stored, Crop(0.1))[0, 0]
    open_dataset(stored)[0, 0]
    assert [len(x) for x in read] == [5, len(open_dataset(stored)[0, 0].wave)]


def test_shards_cover_everything_once():
    assert [i for _, members in shards(1001, 256) for i in members] == list(range(1001)) and len(
        shards(1001, 256)
    ) == 4


def test_front_end_refuses_other_shapes(tmp_path):
    (tmp_path / "features.yaml").write_text(yaml.safe_dump({"dim": 32, "states": 0, "hop": 320}))
    with pytest.raises(ValueError, match="this model wants 32"):
        Stored.of(tmp_path)(torch.zeros(1, 5, 16), torch.tensor([5]))
