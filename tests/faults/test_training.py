"""A run survives what disks, users and power stations do to its folder."""

import errno
import os
import random
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from tests.conftest import ROOT, power_cut
from tests.training.runs import QUICK, Stop, small, weights
from wedefense_nb.files import atomic
from wedefense_nb.models.detector import load_weights
from wedefense_nb.training import loop
from wedefense_nb.training.loop import fit


@pytest.fixture(scope="module")
def splits(few):
    return few.subset(split="train"), few.subset(split="dev")


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    return fit(small(), *splits, QUICK, out=tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cut(splits, tmp_path_factory):
    """A run that was interrupted in its second epoch, and the bytes of its two states."""
    out = tmp_path_factory.mktemp("cut")
    per_epoch = len(loop.epoch_batches(splits[0], QUICK.batch_size, 0, QUICK.seed, QUICK.balance))
    with power_cut(loop, "_step", per_epoch + 3, Stop):
        fit(small(), *splits, QUICK, out=out)
    folder = out / "checkpoints"
    return out, (folder / "last.pt").read_bytes(), (folder / "last_epoch.pt").read_bytes()


@pytest.fixture
def folder(cut):
    """Its checkpoints, put back as they were afterwards."""
    out, last, epoch = cut
    yield out / "checkpoints"
    (out / "checkpoints/last.pt").write_bytes(last)
    (out / "checkpoints/last_epoch.pt").write_bytes(epoch)


def same(a, b) -> bool:
    """Equal to the last bit, whatever is nested in them."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def damages(last: bytes):
    """Names and contents of what `last.pt` may have become."""
    yield from {"empty": b"", "text": b"weights", "zeros": bytes(len(last)), "one byte": b"P"}.items()
    rng = random.Random(5)
    for _ in range(12):
        at = rng.randrange(len(last))
        yield f"cut to {at}", last[:at]
    places = [rng.randrange(len(last)) for _ in range(60)]
    for at in places:
        yield f"flip at {at}", last[:at] + bytes([last[at] ^ 1 << rng.randrange(8)]) + last[at + 1 :]


def test_a_damaged_state_is_refused_and_the_whole_epoch_offered(cut, folder):
    out, last, _ = cut
    right = loop._read_state(folder / "last.pt")
    ended = {"refused": 0, "right": 0}
    for what, content in damages(last):
        (folder / "last.pt").write_bytes(content)
        try:
            found = loop._resume(folder, right["identity"])
        except ValueError as error:
            assert "last.pt is damaged" in str(error) and "after epoch 1 is whole" in str(error), what
            ended["refused"] += 1
        else:
            assert same(found, right), what  # the bit was in the padding between the parts
            ended["right"] += 1
    assert ended["refused"] > 40, ended


def test_one_bit_of_one_tensor_is_noticed(cut, folder):
    _, last, _ = cut
    state = loop._read_state(folder / "last.pt")
    value = next(v for v in state["model"].values() if v.numel() > 100)
    at = last.find(value.contiguous().numpy().tobytes())
    assert at > 0
    (folder / "last.pt").write_bytes(last[: at + 40] + bytes([last[at + 40] ^ 1]) + last[at + 41 :])
    assert not same(torch.load(folder / "last.pt", weights_only=True), state)  # torch itself reads on
    with pytest.raises(ValueError, match="last.pt is damaged .*checksum"):
        loop._resume(folder, state["identity"])


def test_without_any_whole_state_nothing_begins_by_itself(splits, cut, folder):
    for name in ("last.pt", "last_epoch.pt"):
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.pt is damaged.*No epoch is whole: delete .* to begin again"):
        fit(small(), *splits, QUICK, out=cut[0])


def test_the_run_goes_on_from_the_whole_epoch_to_the_same_bits(splits, whole, cut, folder):
    out, last, _ = cut
    (folder / "last.pt").write_bytes(last[:1000])
    with pytest.raises(ValueError, match="delete last.pt, and the same command continues"):
        fit(small(), *splits, QUICK, out=out)
    (folder / "last.pt").unlink()
    with pytest.warns(UserWarning, match="continues from the end of epoch 1"):
        again = fit(small(), *splits, QUICK, out=out)
    assert torch.equal(weights(again.model), weights(whole.model)) and again.history.equals(whole.history)


def test_a_flipped_bit_in_a_kept_epoch_is_not_averaged(whole):
    path = sorted((whole.out / "checkpoints").glob("epoch_*"))[0]
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
        with pytest.raises(ValueError, match=f"{path.name}: damaged"):
            load_weights(path)
    finally:
        path.write_bytes(data)


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
from tests.training.runs import QUICK, small
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.training.loop import fit

corpus = Manifest.read(sys.argv[1])
few = corpus.subset(utt=sys.argv[4].split(","))
try:
    fit(small(), few.subset(split="train"), few.subset(split="dev"), QUICK, out=sys.argv[2])
except OSError as error:
    sys.exit(f"error: {error}")
"""


def test_a_full_disk_is_said_in_words_and_costs_nothing(few, splits, whole, tmp_path):
    utts = ",".join(few.utterances.utt)
    size = (whole.out / "checkpoints/last.pt").stat().st_size
    words = [sys.executable, "-c", FULL, str(few.root), str(tmp_path), str(size - 100_000), utts]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert "error: " in done.stderr and "disk" in done.stderr and "full" in done.stderr, done.stderr[-2000:]
    assert done.stderr.count("Traceback") == 0
    assert not list(tmp_path.rglob("partial-*"))
    again = fit(small(), *splits, QUICK, out=tmp_path)
    assert torch.equal(weights(again.model), weights(whole.model))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "cannot be written to"),
        (errno.EACCES, "cannot be written to"),
        (errno.ENOTDIR, "a file stands where a folder should be"),
    ],
)
def test_what_a_disk_says_becomes_words(tmp_path, number, words):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match=f"a: .*{words}"), atomic(tmp_path / "a") as partial:
        partial.write_text("ne")
        raise OSError(number, os.strerror(number))
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_file_where_a_folder_should_be(splits, tmp_path):
    (tmp_path / "run").write_text("something else")
    with pytest.raises(OSError, match="run"):
        fit(small(), *splits, QUICK, out=tmp_path / "run")
    with pytest.raises(OSError, match="a file stands where a folder should be"), atomic(tmp_path / "run/a/b"):
        pass
    assert (tmp_path / "run").read_text() == "something else"


def test_of_two_runs_in_one_folder_the_second_is_refused(splits, whole, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/partial-1-last.pt").write_bytes(b"left by a killed process")
    with FileLock(tmp_path / ".training.lock"):
        with pytest.raises(ValueError, match=r"another process is at work there \(training\)"):
            fit(small(), *splits, QUICK, out=tmp_path)
        assert (tmp_path / "checkpoints/partial-1-last.pt").exists()  # it may be the other's
    again = fit(small(), *splits, QUICK, out=tmp_path)
    assert torch.equal(weights(again.model), weights(whole.model))
    assert not list(tmp_path.rglob("partial-*"))
