import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from webdataset import tariterators

from tests.conftest import Handler, serving
from wedefense_nb.data import shards
from wedefense_nb.data.audio import AudioError
from wedefense_nb.data.batches import AudioDataset, epoch_batches, eval_batches, loader, share
from wedefense_nb.data.crops import Crop
from wedefense_nb.data.manifest import Manifest, ManifestError
from wedefense_nb.data.shards import (
    ShardStream,
    fetch_shards,
    member_name,
    read_shards,
    read_tar,
    reading_plan,
    shard_list,
    write_shards,
)
from wedefense_nb.features.stored import open_dataset
from wedefense_nb.task import UNLABELLED


@pytest.fixture(scope="module")
def small(few) -> Manifest:
    return few.subset(
        utt=few.utterances.utt[:23].tolist() + few.utterances.utt[few.utterances.kind == "partial"].tolist()[:8]
    )


@pytest.fixture(scope="module")
def packed(small, tmp_path_factory) -> Manifest:
    return write_shards(small, tmp_path_factory.mktemp("packed"), size=7)


def tar(path, members: dict[str, bytes]):
    """A tar file as anyone may write it."""
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return path


def wedefense(folder, manifest, n=3):
    """Shards in WeDefense's layout: label, then sound, and nothing else."""
    for at in range(0, len(manifest), n):
        members = {}
        for row in manifest.utterances.iloc[at : at + n].itertuples():
            members |= {
                f"{row.utt}.lab": row.label.encode(),
                f"{row.utt}.flac": (manifest.root / row.path).read_bytes(),
            }
        tar(folder / f"shards_{at:09d}.tar", members)
    return folder


# What is written


def test_shards_hold_the_whole_manifest_and_the_sounds_byte_for_byte(small, packed):
    back = Manifest.read(packed.root)
    columns = [c for c in small.utterances.columns if c != "path"]
    for m in (packed, back, read_shards(packed.root)):
        u = m.utterances.set_index("utt").loc[small.utterances.utt].reset_index()
        pd.testing.assert_frame_equal(u[columns], small.utterances[columns], check_dtype=False)
        s = [x.segments.sort_values(["utt", "start"]).reset_index(drop=True) for x in (m, small)]
        pd.testing.assert_frame_equal(*s, check_dtype=False)
    for utt, path in zip(small.utterances.utt, small.paths(), strict=True):
        row = packed.utterances.set_index("utt").loc[utt]
        data = (packed.root / row.path).read_bytes()[row.offset : row.offset + row["size"]]
        assert data == path.read_bytes()


def test_two_processes_write_what_one_writes(small, packed, tmp_path):
    other = write_shards(small, tmp_path / "two", size=7, workers=2)
    names = sorted(set(packed.utterances.path))
    assert names == [f"shard-{i:05d}.tar" for i in range(-(-len(small) // 7))]
    assert all((packed.root / n).read_bytes() == (other.root / n).read_bytes() for n in names)
    assert (
        write_shards(small, tmp_path / "seed", size=7, seed=1).utterances.utt.tolist()
        != packed.utterances.utt.tolist()
    )


def test_webdataset_itself_reads_them(small, packed):
    found = {}
    for path in packed.root.glob("*.tar"):
        with open(path, "rb") as file:
            for x in tariterators.group_by_keys(
                tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            ):
                if not x:  # webdataset's mark of an end
                    continue
                found[json.loads(x["json"])["utterance"]["utt"]] = x["lab"].decode()
                assert x["flac"][:4] == b"fLaC"
    assert found == dict(zip(small.utterances.utt, small.utterances.label, strict=True))


@pytest.mark.parametrize("utt", ["a.b.c", "set/speaker 1/x.wav", "100%", "你好", "x" * 150])
def test_ids_of_any_form_survive(small, tmp_path, utt):
    u = small.utterances.head(2).copy()
    u.loc[0, "utt"] = utt
    made = write_shards(Manifest(u, root=small.root), tmp_path / "out")
    assert set(made.utterances.utt) == {utt, u.utt[1]} and not {".", "/"} & set(member_name(utt))
    assert {x for b in ShardStream(tmp_path / "out", 4).batches() for x in b.utts} == {utt, u.utt[1]}


def test_what_cannot_be_packed_is_named(small, packed, tmp_path):
    with pytest.raises(ManifestError, match="already holds shards"):
        write_shards(small, packed.root)
    with pytest.raises(ManifestError, match="files of their own"):
        write_shards(packed, tmp_path / "again")
    with pytest.raises(ManifestError, match="positive size"):
        write_shards(small, tmp_path / "zero", size=0)
    for path, reason in {
        "audio/gone.flac": "gone.flac: no such file",
        "README.md": "README.md: not a sound",
    }.items():
        with pytest.raises(ManifestError, match=reason):
            write_shards(
                Manifest(small.utterances.head(2).assign(path=path), root=small.root), tmp_path / reason[:4]
            )
        assert not list((tmp_path / reason[:4]).glob("*.tar"))


# Reading in any order


def test_a_manifest_of_shards_is_used_like_any_other(small, packed):
    few = small.utterances.utt[:5].tolist()
    for crop in (None, 0.4):
        data = {
            m: open_dataset(x, crop and Crop(crop, seed=3)) for m, x in {"files": small, "shards": packed}.items()
        }
        where = {utt: i for i, utt in enumerate(packed.utterances.utt)}
        for i, utt in enumerate(few):
            a = data["files"][2, i]
            b = data["shards"][2, where[utt]]
            assert (
                a.utt == b.utt
                and a.label == b.label
                and np.array_equal(a.wave, b.wave)
                and np.array_equal(a.fakes, b.fakes)
            )
    assert len(packed.subset(label="spoof")) == len(small.subset(label="spoof"))


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_a_plan_reads_everything_once_and_resumes(packed, world, batch_size):
    plan = epoch_batches(packed, batch_size, epoch=1)
    utts = []
    for rank in range(world):
        mine = share(plan, rank, world)
        whole = [b.utts for b in loader(AudioDataset(packed, Crop(0.2)), mine)]
        done = len(mine) // 2
        assert [b.utts for b in loader(AudioDataset(packed, Crop(0.2)), mine[done:], workers=2)] == whole[done:]
        utts += sum(whole, [])
    assert sorted(utts) == sorted(packed.utterances.utt)


# Reading from front to back


@pytest.mark.parametrize("readers", [1, 2, 5, 12])
@pytest.mark.parametrize("shards", [1, 2, 3, 5, 12, 13])
def test_readers_share_everything_once(shards, readers):
    taken = [
        range(10)[first::step]
        for r in range(readers)
        for _, first, step in reading_plan(["x"] * shards, r, readers)
    ]
    assert sum(map(len, taken)) == 10 * shards
    pairs = [
        (u, i)
        for r in range(readers)
        for u, f, s in reading_plan(list(map(str, range(shards))), r, readers)
        for i in range(10)[f::s]
    ]
    assert len(set(pairs)) == 10 * shards


# more workers than shards (5), fewer utterances than a batch, three ranks
@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"
)  # more workers than cores, on purpose
@pytest.mark.parametrize("workers, world, batch_size", [(0, 1, 4), (2, 1, 100), (0, 3, 4), (3, 3, 100), (7, 1, 2)])
def test_a_stream_reads_everything_once(packed, workers, world, batch_size):  # pitfall 53
    order = []
    for rank in range(world):
        stream = ShardStream(packed.root, batch_size, Crop(0.1), epoch=2, rank=rank, world=world, buffer=5)
        order += [u for b in stream.batches(workers) for u in b.utts]
    assert sorted(order) == sorted(packed.utterances.utt)


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"
)  # more workers than cores, on purpose
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_repeats_itself_and_resumes(packed, workers):
    def read(**how):
        return list(ShardStream(packed.root, 3, Crop(0.2), buffer=6, **how).batches(workers))

    whole = read(epoch=1)
    for done in (0, 1, 5, len(whole)):
        rest = read(epoch=1, done=done)
        assert len(rest) == len(whole) - done
        for a, b in zip(rest, whole[done:], strict=True):
            assert a.utts == b.utts and torch.equal(a.wave, b.wave) and torch.equal(a.labels, b.labels)
    assert [b.utts for b in read(epoch=0)] != [b.utts for b in whole]
    assert [b.utts for b in read(epoch=1, seed=1)] != [b.utts for b in whole]


def test_a_stream_gives_the_items_of_the_dataset(packed):
    data = AudioDataset(packed, Crop(0.3, seed=4))
    where = {utt: i for i, utt in enumerate(packed.utterances.utt)}
    n_fakes = 0
    for batch in ShardStream(packed.root, 5, Crop(0.3, seed=4), epoch=1).batches():
        for i, utt in enumerate(batch.utts):
            want = data[1, where[utt]]
            assert np.array_equal(batch.wave[i, : batch.lengths[i]], want.wave) and batch.labels[i] == want.label
            assert np.allclose(batch.fakes[i], want.fakes)
            n_fakes += len(want.fakes)
    assert n_fakes


def test_a_large_buffer_shuffles_across_shards(packed):  # pitfall 52
    orders = {tuple(x["key"] for x in ShardStream(packed.root, 1, epoch=e).order(0, 1)) for e in range(8)}
    number = dict(zip(packed.utterances.utt, packed.utterances.path, strict=True))
    firsts = {number[o[0]] for o in orders}
    assert len(orders) == 8 and len(firsts) > 2
    assert all(len({number[u] for u in o[:7]}) > 1 for o in orders)


def test_the_order_of_shards_is_drawn_from_seed_and_epoch(packed):
    shard = dict(zip(packed.utterances.utt, packed.utterances.path, strict=True))

    def order(**draw):
        """Shards in the order in which they come, without a buffer to mix them."""
        return tuple(
            dict.fromkeys(shard[x["key"]] for x in ShardStream(packed.root, 1, buffer=1, **draw).order(0, 1))
        )

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({order(seed=seed) for seed in range(8)}) > 2
    assert len({order(epoch=epoch) for epoch in range(8)}) > 2


@pytest.mark.parametrize("where", ["disk", "web"])
def test_a_list_of_paths_or_addresses(packed, site, where, tmp_path):
    start = site.address if where == "web" else packed.root
    urls = [f"{start}/{p.name}" for p in sorted(packed.root.glob("*.tar"))]
    utts = [u for b in ShardStream(urls, 4, Crop(0.1)).batches() for u in b.utts]
    assert sorted(utts) == sorted(packed.utterances.utt)
    made = fetch_shards(urls, tmp_path / "here", workers=2)
    assert made.utterances.equals(packed.utterances) and len(Manifest.read(tmp_path / "here")) == len(packed)
    (tmp_path / "list.txt").write_text("\n".join(urls) + "\n\n")
    assert shard_list(tmp_path / "list.txt") == urls


@pytest.fixture
def site(packed):
    """The folder of shards on a web server; `cut` bytes of each answer are sent."""

    class Answers(Handler):
        cut, files = None, {}

        def do_GET(self):
            name = self.path.strip("/")
            if not (packed.root / name).is_file() and name not in self.files:
                return self.send_error(404)
            data = self.files.get(name) or (packed.root / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: self.cut])

    with serving(Answers) as address:
        Answers.address = address.rstrip("/")
        yield Answers


@pytest.mark.parametrize("workers", [0, 2])
def test_a_web_server_is_read_like_a_folder(packed, site, workers):
    names = sorted(set(packed.utterances.path))
    pattern = f"{site.address}/shard-{{00000..{len(names) - 1:05d}}}.tar"
    how = {"batch_size": 4, "crop": Crop(0.2, "start+tile"), "epoch": 1, "buffer": 6}
    here, there = ([*ShardStream(source, **how).batches(workers)] for source in (packed.root, pattern))
    assert sorted(u for b in there for u in b.utts) == sorted(packed.utterances.utt)
    for a, b in zip(here, there, strict=True):
        assert a.utts == b.utts and torch.equal(a.wave, b.wave) and torch.equal(a.labels, b.labels)
        assert all(np.array_equal(x, y) for x, y in zip(a.fakes, b.fakes, strict=True))
    rest = [*ShardStream(pattern, **how, done=3).batches(workers)]
    assert [b.utts for b in rest] == [b.utts for b in here[3:]]
    ranks = [
        u for r in range(3) for b in ShardStream(pattern, **how, rank=r, world=3).batches(workers) for u in b.utts
    ]
    assert sorted(ranks) == sorted(packed.utterances.utt)


def test_a_list_on_a_web_server_counts_from_its_place(packed, site, tmp_path):
    names = sorted(set(packed.utterances.path))
    site.files["shards.txt"] = "\r\n".join([*names[:-1], f"{site.address}/{names[-1]}", ""]).encode()
    source = f"{site.address}/shards.txt"
    assert shard_list(source) == [f"{site.address}/{name}" for name in names]
    made = fetch_shards(source, tmp_path / "here", workers=2)
    assert made.utterances.equals(packed.utterances) and made.segments.equals(packed.segments)
    data = open_dataset(made, Crop(0.3, "start+tile", seed=1))
    assert np.array_equal(data[0, 4].wave, open_dataset(packed, Crop(0.3, "start+tile", seed=1))[0, 4].wave)


def test_what_a_server_lacks_or_breaks_off_is_named(site, tmp_path):  # pitfall 53
    for source in (
        f"{site.address}/gone.tar",
        [f"{site.address}/shard-00000.tar", f"{site.address}/gone.tar"],
    ):
        with pytest.raises(ManifestError, match="gone.tar: missing"):
            list(ShardStream(source, 4).batches())
    with pytest.raises(ManifestError, match="gone.txt: no such list"):
        shard_list(f"{site.address}/gone.txt")
    with pytest.raises(ManifestError, match="cannot be fetched"):
        fetch_shards([f"{site.address}/gone.tar"], tmp_path)
    site.cut = 30_000
    with pytest.raises(ManifestError, match="shard-00000.tar: missing, not a tar file, or truncated"):
        list(ShardStream(f"{site.address}/shard-00000.tar", 4).batches(workers=1))
    with pytest.raises(ManifestError, match="shard-00000.tar"):
        fetch_shards([f"{site.address}/shard-00000.tar"], tmp_path)
    assert not [*tmp_path.glob("*.tar")]


def test_patterns_of_addresses():
    assert shard_list("https://host/x-{00..02}.tar") == [f"https://host/x-0{i}.tar" for i in range(3)]


def test_shards_of_wedefense(small, tmp_path):
    m = read_shards(wedefense(tmp_path, small))
    want = small.utterances.sort_values("utt")[["utt", "label", "sample_rate"]].reset_index(drop=True)
    got = m.utterances.sort_values("utt").reset_index(drop=True)
    pd.testing.assert_frame_equal(got[list(want)], want, check_dtype=False)
    assert np.allclose(got.duration, small.utterances.sort_values("utt").duration, atol=1e-3)
    batches = loader(AudioDataset(m), eval_batches(m, 8))
    streamed = ShardStream(tmp_path, 8).batches(2)
    labels = [{u: int(y) for b in bs for u, y in zip(b.utts, b.labels, strict=True)} for bs in (batches, streamed)]
    assert labels[0] == labels[1] and len(labels[0]) == len(small)


# What is broken ends with a message


def test_lists_that_cannot_be_read(tmp_path):  # pitfall 53: a published loader waits forever
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.txt").write_text(f"{tmp_path}/gone.tar\n")
    for source in ("none.txt", "empty.txt", ""):
        with pytest.raises(ManifestError, match="no such list|lists no shards"):
            list(ShardStream(tmp_path / source, 4).batches())
    with pytest.raises(ManifestError, match="gone.tar"):
        list(ShardStream([f"{tmp_path}/gone.tar"], 4).batches())
    with pytest.raises(ManifestError, match="gone.tar"):
        list(ShardStream(tmp_path / "wrong.txt", 4).batches(workers=1))
    with pytest.raises(ManifestError, match="gone.tar: not a file"):
        read_shards(tmp_path / "wrong.txt")
    with pytest.raises(ManifestError, match="fetch_shards"):
        read_shards(["https://host/x.tar"])


def cuts(packed):
    """Ends that copying may leave: in the last sound, at a border of members, in a header, without the mark."""
    path = packed.root / "shard-00001.tar"
    with tarfile.open(path) as t:
        members = t.getmembers()
    last = members[-3]
    end = members[-1].offset_data + 512 * -(-members[-1].size // 512)
    return path.read_bytes(), {
        "in the sound": last.offset_data + last.size // 2,
        "border": members[-2].offset,
        "header": members[-1].offset + 100,
        "mark": end,
        "half mark": end + 512,
    }


@pytest.mark.parametrize("where", ["disk", "web"])
def test_a_truncated_shard_is_named_and_its_broken_recording_never_comes(packed, site, where, tmp_path):
    # pitfall 53
    data, ends = cuts(packed)
    for what, at in ends.items():
        (tmp_path / "cut.tar").write_bytes(data[:at])
        site.files["cut.tar"] = data[:at]
        url = f"{site.address}/cut.tar" if where == "web" else str(tmp_path / "cut.tar")
        seen = []
        with pytest.raises(ManifestError, match="cut.tar: missing, not a tar file, or truncated"):
            for x in shards.samples(url):
                seen.append(x["sound"]())
        assert len(seen) in (5, 6), what  # the seventh was cut, or what follows it is not known
        with pytest.raises(ManifestError, match="truncated"):
            list(ShardStream([url], 4).batches())
        with pytest.raises(ManifestError, match="truncated"):
            fetch_shards([url], tmp_path / "here")
        assert not (tmp_path / "here/cut.tar").exists()
    with pytest.raises(ManifestError, match="truncated"):
        read_shards(tmp_path)


def test_a_broken_header_is_named_where_nothing_else_counts(small, tmp_path):
    """In WeDefense's layout, which has neither counts nor checksums."""
    path = sorted(wedefense(tmp_path, small).glob("*.tar"))[0]
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as whole:
        at = whole.getmembers()[-2].offset
    data[at + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="what follows it is lost|truncated"):
        list(shards.samples(path))


def test_a_changed_note_is_damage(packed, tmp_path):
    data = (packed.root / "shard-00000.tar").read_bytes()
    assert b'"split": "train"' in data
    (tmp_path / "a.tar").write_bytes(data.replace(b'"split": "train"', b'"split": "trajn"', 1))
    with pytest.raises(ManifestError, match="json: damaged"):
        list(shards.samples(tmp_path / "a.tar"))


def test_what_was_there_before_stays_in_the_index(packed, tmp_path):
    urls = sorted(str(p) for p in packed.root.glob("*.tar"))
    first = fetch_shards(urls[:1], tmp_path)
    every = fetch_shards(urls[1:], tmp_path)
    assert 0 < len(first) < len(every) == len(packed) == len(Manifest.read(tmp_path))
    utts = [u for b in ShardStream(tmp_path, 4, Crop(0.1)).batches() for u in b.utts]
    assert sorted(utts) == sorted(packed.utterances.utt)


def test_what_an_index_promises_comes_or_is_named(small, tmp_path):
    """A whole shard from which somebody has taken a recording, in a layout without counts of its own."""
    index = read_shards(wedefense(tmp_path, small))
    index.write(tmp_path)
    path = sorted(tmp_path.glob("*.tar"))[1]
    with tarfile.open(path) as whole:
        members = {m.name: whole.extractfile(m).read() for m in whole}
    gone = [*members][0].rpartition(".")[0]
    tar(path, {name: data for name, data in members.items() if not name.startswith(f"{gone}.")})
    with pytest.raises(ManifestError, match=f"{path.name}: 1 recordings of its index did not come: {gone}"):
        list(ShardStream(tmp_path, 4).batches())
    with pytest.raises(ManifestError, match=f"{path.name}: 1 recordings of its index are not in it: {gone}"):
        fetch_shards(tmp_path, tmp_path / "copy")
    path.unlink()
    with pytest.raises(ManifestError, match=f"{path.name}: missing|{path.name}: 3 recordings"):
        list(ShardStream(tmp_path, 4).batches())


def test_a_shard_cut_after_it_was_indexed(packed, tmp_path):
    copy = fetch_shards(packed.root, tmp_path)
    data, ends = cuts(copy)
    (tmp_path / "shard-00001.tar").write_bytes(data[: ends["in the sound"]])
    with pytest.raises(AudioError, match="shard-00001.tar: truncated"):
        list(loader(AudioDataset(copy), eval_batches(copy, 8)))


def test_members_that_do_not_belong(small, tmp_path):
    sound = small.paths()[0].read_bytes()
    wrong = {
        "alone": {"a.flac": sound},
        "label": {"a.lab": b"bonafide"},
        "class": {"a.lab": b"real", "a.flac": sound},
        "apart": {"a.lab": b"spoof", "b.lab": b"spoof", "a.flac": sound},
        "noise": {"a.lab": b"spoof", "a.flac": b"x" * 99},
        "text": {"a.lab": b"spoof", "a.wav": b""},
    }
    for name, members in wrong.items():
        path = tar(tmp_path / f"{name}.tar", members)
        with pytest.raises(ValueError, match=f"{name}.tar"):
            read_shards([path])
    (tmp_path / "no.tar").write_bytes(b"this is no tar file" * 100)
    (tmp_path / "nothing.tar").write_bytes(b"")
    for name in ("no.tar", "nothing.tar"):
        with pytest.raises(ManifestError, match=name):
            list(read_tar(tmp_path / name))


def test_nonsense_is_refused(packed):
    for how in ({"batch_size": 0}, {"batch_size": 4, "rank": 3, "world": 3}, {"batch_size": 4, "buffer": 0}):
        with pytest.raises(ValueError, match="need a"):
            ShardStream(packed.root, **how)
    with pytest.raises(ManifestError, match="different names"):
        fetch_shards(["a/x.tar", "b/x.tar"], packed.root)


def test_a_reader_may_stop_early(packed, site):
    for start in (packed.root, site.address):
        found = shards.samples(f"{start}/shard-00000.tar")
        next(found)
        found.close()


def test_without_a_label_is_of_no_class(small, tmp_path):
    u = small.utterances.head(3).assign(label="", attack="")
    made = write_shards(Manifest(u, root=small.root), tmp_path)
    assert set(made.utterances.label) == {""}
    assert [x for b in ShardStream(tmp_path, 4).batches() for x in b.labels.tolist()] == [UNLABELLED] * 3


def test_only_missing_shards_are_fetched_and_need_a_name(packed, tmp_path):
    urls = sorted(str(p) for p in packed.root.glob("*.tar"))
    fetch_shards(urls[:2], tmp_path)
    stamp = (tmp_path / "shard-00000.tar").stat().st_mtime_ns
    made = fetch_shards([f"{urls[0]}?version=2", *urls[1:]], tmp_path)
    assert (tmp_path / "shard-00000.tar").stat().st_mtime_ns == stamp and len(made) == len(packed)
    for url in ("https://host/", "https://host/x.zip"):
        with pytest.raises(ManifestError, match="end in .tar"):
            fetch_shards([url], tmp_path)
