"""What strangers' files may do to a reader: each attempt ends in a clear refusal or in the right answer.

`python -m tests.security.attempts` prints the table of SECURITY.md.
"""

import io
import json
import pickle
import random
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT, Handler, serving
from tests.data import trees
from tests.use.shell import quick
from wedefense_nb import metrics, task
from wedefense_nb.data import batches, manifest, shards
from wedefense_nb.data.corpora import prepare
from wedefense_nb.data.lists import read_fields
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.data.parsers import partial
from wedefense_nb.features import pretrained
from wedefense_nb.models import checkpoints
from wedefense_nb.models.detector import build, load_model, save_model
from wedefense_nb.scores.calibration import AffineCalibration, PAVCalibration, load_calibration, save_calibration
from wedefense_nb.scores.score_files import read_keys, read_scores
from wedefense_nb.scores.tandem import a_dcf
from wedefense_nb.training.recipes import merge_parameters

FLAG = "flag"  # the file that a command would make


class Attempt(NamedTuple):
    """Something tried: `call` returns True for the right answer; an error must have one of `names` in its text."""

    what: str
    call: Callable[[], Any]
    names: tuple[str, ...]


def outcome(attempt: Attempt) -> str:
    """How it ended: "refused", "right", or what went wrong."""
    try:
        result = attempt.call()
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error)
        clear = any(name in text for name in attempt.names) and len(text) < 3000 and "Traceback" not in text
        return "refused" if clear else f"unclear ({type(error).__name__}: {text[:200]})"
    except BaseException as error:
        return f"uncaught {type(error).__name__}: {str(error)[:200]}"
    return "right" if result is True else f"accepted, with {str(result)[:100]}"


def by_command(*words) -> Callable[[], bool]:
    """The same from the command line: one line of error, and exit code 1."""

    def call():
        done = quick(*words)
        said = done.stderr.strip()
        if done.returncode == 0 or not said.startswith("error: ") or "Traceback" in said:
            return f"exit code {done.returncode}: {said[-300:]}"
        raise ValueError(said)

    return call


def small_shards(folder: Path, n: int = 5, size: int = 5) -> Manifest:
    """A few short recordings, packed."""
    rng = np.random.default_rng(1)
    rows = []
    (folder / "wav").mkdir(parents=True)
    from wedefense_nb.data.audio import save

    for i in range(n):
        save(folder / f"wav/u{i}.wav", rng.normal(0, 0.1, 800 + 100 * i))
        rows.append(f"u{i},wav/u{i}.wav,{task.LABELS[i % 2]},train,s{i},,,{(800 + 100 * i) / 16000},16000")
    head = ",".join(manifest.UTTERANCES)
    (folder / "utterances.csv").write_text("\n".join([head, *rows]) + "\n")
    return shards.write_shards(Manifest.read(folder), folder / "packed", size)


# 1 Names that are commands


def bad_names(folder: Path) -> list[str]:
    tar = folder / "packed/shard-00000.tar"
    flag = folder / FLAG
    return [
        f"pipe:touch {flag}; cat {tar}",
        f"pipe:cat {tar}",
        f"PIPE:touch {flag}",
        f"| touch {flag}",
        f"file:{tar}",
        f"file://{tar}",
        f"-o {flag} {tar}",
        f"--output={flag}.tar",
        f"ftp://127.0.0.1/{FLAG}.tar",
        "gs://bucket/a.tar",
        "s3://bucket/a.tar",
        "hf://datasets/a/b.tar",
        "htgs://x",
        f"$(touch {flag}).tar",
        f"`touch {flag}`.tar",
        f"a.tar\x00pipe:touch {flag}",
        f"http://127.0.0.1:9/a.tar -o {flag}",
        "http://",
    ]


def names(folder: Path) -> Iterator[Attempt]:
    small_shards(folder)
    site: dict[str, bytes] = {}

    class Site(Handler):
        def do_GET(self):
            to = site.get(self.path)
            if to is None:
                return self.send_error(404)
            if to.startswith(b"->"):
                self.send_response(302)
                self.send_header("Location", to[2:].decode().replace("\x00", ""))
                return self.end_headers()
            self.send_response(200)
            self.send_header("Content-Length", str(len(to)))
            self.end_headers()
            self.wfile.write(to)

    with serving(Site) as address:
        for i, bad in enumerate(bad_names(folder)):
            (folder / f"{i}.txt").write_text(bad + "\n")
            site[f"/{i}.txt"] = (bad + "\n").encode()
            site[f"/{i}.tar"] = b"->" + bad.encode()
            entries = {
                "a source": bad,
                "in a list": [bad],
                "in a file": str(folder / f"{i}.txt"),
                "on the web": f"{address}{i}.txt",
                "redirected": [f"{address}{i}.tar"],
            }
            for where, source in entries.items():
                for reader in (_stream, _fetch, _index):
                    yield Attempt(
                        f"{bad} {where} by {reader.__name__}",
                        lambda reader=reader, source=source: _no_flag(folder, reader, source),
                        ("shard", "opened", ".tar", ".txt", "no such file", "control characters", "127.0.0.1"),
                    )
            u = f"utt,path,label,split,speaker,attack,codec,duration,sample_rate\na,{bad!r},spoof,,,,,1.0,16000\n"
            (folder / f"m{i}").mkdir()
            (folder / f"m{i}/utterances.csv").write_text(u.replace("\x00", ""))
            yield Attempt(
                f"{bad} in a manifest",
                lambda i=i: _no_flag(folder, _first_of, folder / f"m{i}"),
                ("no such file", "m" + str(i), "a,"),
            )
            yield Attempt(
                f"{bad} as an upstream",
                lambda bad=bad: _no_flag(folder, pretrained.find_checkpoint, bad.replace("\x00", "")),
                ("neither a file",),
            )


def _stream(source):
    return [x for batch in shards.ShardStream(source, 2).batches() for x in batch.utts]


def _fetch(source):
    with tempfile.TemporaryDirectory() as folder:
        return shards.fetch_shards(source, folder)


def _index(source):
    return shards.read_shards(source)


def _first_of(folder):
    data = batches.AudioDataset(Manifest.read(folder, files=False))
    return data[0, 0]


def _no_flag(folder: Path, call, *given):
    """What it returns, unless a command was run on the way."""
    try:
        return call(*given)
    finally:
        if list(folder.glob(f"{FLAG}*")) or Path(FLAG).exists():
            raise SystemError("a command was run")


# 2 and 4 Damaged shards and their notes


def damaged(folder: Path) -> Iterator[Attempt]:
    m = small_shards(folder)
    path = folder / "packed/shard-00000.tar"
    whole = path.read_bytes()
    sounds = {x["utterance"]["utt"]: x["sound"]() for x in shards.samples(path)}
    data = batches.AudioDataset(m)

    def read(blob):
        path.write_bytes(blob)
        try:
            streamed = {
                x["utterance"]["utt"]: x["sound"]() for x in shards.ShardStream(path.parent, 1).order(0, 1)
            }
            indexed = {data.utts[i]: data.open(i).data for i in range(len(data))}
            return streamed == sounds and indexed == sounds
        finally:
            path.write_bytes(whole)

    def read_alone(blob):
        with tempfile.TemporaryDirectory() as alone:
            copy = Path(alone) / "shard-00000.tar"
            copy.write_bytes(blob)
            return {x["utterance"]["utt"]: x["sound"]() for x in shards.samples(copy)} == sounds

    rng = random.Random(7)
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    flips = [at + rng.randrange(512) for at in headers for _ in range(4)]
    flips += [rng.randrange(len(whole)) for _ in range(40)]
    for reader in (read, read_alone):
        for at in flips:
            blob = bytearray(whole)
            blob[at] ^= 1 << rng.randrange(8)
            yield Attempt(f"flip at {at}", lambda r=reader, b=bytes(blob): r(b), ("shard-00000.tar",))
        for at in range(0, len(whole), 512):
            blob = bytearray(whole)
            blob[at : at + 512] = bytes(512)
            yield Attempt(f"zeros at {at}", lambda r=reader, b=bytes(blob): r(b), ("shard-00000.tar",))
        for _ in range(10):
            cut = whole[: rng.randrange(len(whole))]
            yield Attempt(f"cut to {len(cut)}", lambda r=reader, b=cut: r(b), ("shard-00000.tar",))


def notes(folder: Path) -> Iterator[Attempt]:
    small_shards(folder)
    sound = next(iter(shards.samples(folder / "packed/shard-00000.tar")))["sound"]()
    right = {"utt": "u", "label": "spoof", "split": "", "speaker": "", "attack": "", "codec": ""}
    right |= {"duration": 0.05, "sample_rate": 16000}
    span = {"start": 0.01, "end": 0.02, "label": "spoof", "attack": ""}

    def note(**change):
        return json.dumps({"utterance": right, "segments": [span]} | change)

    without = [{k: v for k, v in right.items() if k != gone} for gone in ("utt", "label")]
    texts = [
        *("null", "[]", "3", '"text"', "{", "", "{}", "[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000),
        *(
            "[" * 100_000,
            '{"utterance": null, "segments": []}',
            "\ufeffnull",
            '{"utterance": 1e999, "segments": 1}',
        ),
        *(note(utterance=u) for u in without),
        note(utterance=right | {"utt": 5}),
        note(utterance=right | {"utt": ["u"]}),
        note(utterance=right | {"label": "fake"}),
        note(utterance=right | {"label": None}),
        note(utterance=right | {"speaker": {"a": 1}}),
        note(utterance=[right]),
        note(segments=None),
        note(segments=[3]),
        note(segments=["start"]),
        note(segments=[{"end": 0.02, "label": "spoof"}]),
        note(segments=[span | {"start": "x"}]),
        note(segments=[span | {"start": float("nan")}]),
        note(segments=[span | {"end": float("inf")}]),
        note(segments=[span | {"start": -1}]),
        note(segments=[span | {"start": 0.03}]),
        note(segments=[span | {"label": "fake"}]),
        note(place="1"),
        note(place=[1]),
        note(place=[-1, 2]),
        note(place=[0, 7]),
        note(crc32="00000000"),
        note(sound_crc32="00000000"),
    ]
    shadows = [
        note(key="other", sound=None, offset=0, size=1, note=None),
        note(utterance=right | {"path": "/etc/passwd", "offset": 0, "size": 10, "crc32": "", "key": "x"}),
    ]
    for i, text in enumerate([*texts, *shadows]):
        for name in (f"{i}.tar",):
            path = folder / name
            with tarfile.open(path, "w") as out:
                for member, data in (("u.wav", sound), ("u.json", text.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))

            def read(path=path):
                found = [x for x in shards.samples(path)]
                ours = [x["sound"]() == sound and x["key"] == "u" for x in found]
                m = shards.read_shards([path])
                place = Path(m.utterances.path[0]) == path and m.utterances["size"][0] == len(sound)
                streamed = _stream([str(path)])
                return all(ours) and place and streamed == ["u"]

            yield Attempt(text[:60], read, (name,))
    empty = {"no members": b"\0" * 10240, "nothing": b"", "text": b"not a tar"}
    for what, data in empty.items():
        (folder / "empty.tar").write_bytes(data)
        blob = folder / f"{what.replace(' ', '-')}.tar"
        blob.write_bytes(data)
        for reader in (_stream, _fetch, _index):
            yield Attempt(f"{what} by {reader.__name__}", lambda r=reader, b=blob: r([str(b)]), (blob.name,))
    for data in (b"\xff\xfes\0p\0", b"\xff", b"spo\0of"):
        path = folder / f"lab{len(data)}.tar"
        with tarfile.open(path, "w") as out:
            for member, content in (("u.wav", sound), ("u.lab", data)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
        yield Attempt(f"label {data!r}", lambda p=path: list(shards.samples(p)), (path.name,))


# 3 Accepted though wrong


def times(folder: Path) -> Iterator[Attempt]:
    odd = ["nan", "inf", "-inf", "1e300", "-1", "-0.5", "abc", "1e999"]
    u = "utt,path,label,split,speaker,attack,codec,duration,sample_rate\na,a.wav,spoof,,,x,,3.0,16000\n"
    (folder / "utterances.csv").write_text(u)
    m = Manifest.read(folder, files=False)
    good = "SPEAKER a 1 0.5 1.0 <NA> <NA> spoof <NA> <NA>\n"
    for column in (3, 4):
        for i, value in enumerate(odd):
            fields = good.split()
            fields[column] = value
            path = folder / f"t{column}{i}.rttm"
            path.write_text(good + " ".join(fields) + "\n")
            yield Attempt(f"{value} in column {column}", lambda p=path: partial.read_rttm(p), (path.name,))
            yield Attempt(f"{value}, manifest", lambda p=path: manifest.from_rttm(m, p), (path.name, "segment"))
            s = folder / f"s{column}{i}"
            s.mkdir()
            (s / "utterances.csv").write_text(u)
            start, end = (value, "2.0") if column == 3 else ("0.5", value)
            (s / "segments.csv").write_text(f"utt,start,end,label,attack\na,{start},{end},spoof,x\n")
            yield Attempt(f"{value} in segments.csv", lambda s=s: Manifest.read(s, files=False), (s.name,))
        for split in ("train", "dev"):
            for value in odd:
                root = folder / f"ps{column}{split}{value}"
                trees.tree("partialspoof", root)
                rttm = root / f"database/{split}/con_data/rttm_2cls_0sil"
                lines = rttm.read_text().splitlines()
                fields = lines[0].split()
                fields[column] = value
                rttm.write_text("\n".join([" ".join(fields), *lines[1:]]) + "\n")
                yield Attempt(
                    f"{value} in PartialSpoof's RTTM",
                    lambda r=root: prepare("partialspoof", r, strict=True),
                    ("rttm", str(root)),
                )


def torn(folder: Path) -> Iterator[Attempt]:
    """Lists with a line too many or too few, and files cut in the middle: strict reading refuses."""
    for name in ("asvspoof2019_la", "partialspoof"):
        whole = folder / name
        trees.tree(name, whole)
        lists = [p for p in whole.rglob("*") if p.suffix == ".txt" or p.name == "rttm_2cls_0sil"]
        for i, path in enumerate(sorted(lists)):
            lines = path.read_text().splitlines()
            changes = {"doubled": [*lines, lines[0]], "without its first line": lines[1:]}
            changes["cut"] = lines[: len(lines) // 2]
            for what, changed in changes.items():
                root = folder / f"{name}-{i}-{what}"
                shutil.copytree(whole, root)
                (root / path.relative_to(whole)).write_text("\n".join(changed) + "\n" if changed else "")
                yield Attempt(
                    f"{path.name} {what}",
                    lambda n=name, r=root: prepare(n, r, strict=True),
                    (str(root), "overlapping"),
                )


def numbers(folder: Path) -> Iterator[Attempt]:
    labels = np.array([0, 1, 0, 1])
    wrong = {
        "complex": np.array([1 + 2j, 2, 3, 4]),
        "text": np.array(["1", "2", "3", "4"]),
        "dates": np.array(["2026-01-01"] * 4, dtype="datetime64[D]"),
        "objects": np.array([1j, 2, 3, 4], dtype=object),
    }
    fitted = AffineCalibration().fit([0.0, 1.0, 2.0, 3.0], labels)
    for what, scores in wrong.items():
        calls = {
            "eer": lambda s=scores: metrics.eer(s, labels),
            "cllr": lambda s=scores: metrics.cllr(s, labels),
            "decide": lambda s=scores: task.decide(s),
            "posterior": lambda s=scores: task.posterior(s),
            "fit": lambda s=scores: AffineCalibration().fit(s, labels),
            "transform": lambda s=scores: fitted.transform(s),
            "pav": lambda s=scores: PAVCalibration().fit(s, labels),
            "a_dcf": lambda s=scores: a_dcf(s, np.array(["target", "nontarget", "spoof", "target"])),
        }
        for name, call in calls.items():
            yield Attempt(f"{what} in {name}", call, ("real numbers",))
    for value in ("nan", "", "1+2j", "one"):
        path = folder / f"scores{value[:2]}.csv"
        path.write_text(f"utt,score\na,{value}\nb,1.0\n")
        yield Attempt(f"score {value!r} in a file", lambda p=path: read_scores(p), (path.name,))


# 4 Texts, settings, calibrations, weights


def texts(folder: Path) -> Iterator[Attempt]:
    table = "utt,path,label,split,speaker,attack,codec,duration,sample_rate\na,a.wav,spoof,,,x,,3.0,16000\n"
    rttm = "SPEAKER a 1 0.5 1.0 <NA> <NA> spoof <NA> <NA>\n"
    segments = "utt,start,end,label,attack\na,0.5,1.5,spoof,x\n"
    encodings = {
        "UTF-16": lambda t: t.encode("utf-16"),
        "UTF-16 without mark": lambda t: t.encode("utf-16-le"),
        "broken UTF-8": lambda t: t.encode().replace(b"spoof", b"sp\xff\xfeof"),
        "latin-1": lambda t: t.replace("a", "\xe4").encode("latin-1"),
        "zeros": lambda t: t.encode() + b"\0" * 20,
    }
    (folder / "m").mkdir()
    (folder / "m/utterances.csv").write_text(table)
    m = Manifest.read(folder / "m", files=False)
    for i, (what, encode) in enumerate(encodings.items()):
        home = folder / f"t{i}"
        for sub in ("u", "s", "k", "l"):
            (home / sub).mkdir(parents=True)
        (home / "u/utterances.csv").write_bytes(encode(table))
        (home / "s/utterances.csv").write_text(table)
        (home / "s/segments.csv").write_bytes(encode(segments))
        (home / "a.rttm").write_bytes(encode(rttm))
        (home / "keys.txt").write_bytes(encode("S a - A01 spoof\n"))
        (home / "scores.txt").write_bytes(encode("a A01 spoof 1.0\n"))
        (home / "k/wav.scp").write_bytes(encode("a a.wav\n"))
        (home / "k/utt2lab").write_bytes(encode("a spoof\n"))
        (home / "list.txt").write_bytes(encode("a spoof.tar\n"))
        (home / "l/sources.csv").write_bytes(encode("id,path,kind,duration\na,spoof.wav,noise,1.0\n"))
        (home / "p.yaml").write_bytes(encode("data: spoof a\n"))
        calls = {
            "manifest": (lambda h=home: Manifest.read(h / "u", files=False), "utterances.csv"),
            "segments": (lambda h=home: Manifest.read(h / "s", files=False), "segments.csv"),
            "rttm": (lambda h=home: manifest.from_rttm(m, h / "a.rttm"), "a.rttm"),
            "corpus rttm": (lambda h=home: partial.read_rttm(h / "a.rttm"), "a.rttm"),
            "keys": (lambda h=home: read_keys(h / "keys.txt"), "keys.txt"),
            "keys by command": (
                by_command("evaluate", folder / "ok.csv", "--keys", home / "keys.txt"),
                "keys.txt",
            ),
            "scores": (lambda h=home: read_scores(h / "scores.txt"), "scores.txt"),
            "scores by command": (by_command("evaluate", home / "scores.txt"), "scores.txt"),
            "protocol": (lambda h=home: read_fields(h / "keys.txt", [5]), "keys.txt"),
            "kaldi": (lambda h=home: manifest.from_kaldi(h / "k"), "wav.scp"),
            "list of shards": (lambda h=home: shards.ShardStream(h / "list.txt", 2), "list.txt"),
            "parameters": (lambda h=home: merge_parameters(DETECTION, h / "p.yaml", []), "p.yaml"),
        }
        (folder / "ok.csv").write_text("utt,score\na,1.0\n")
        for name, (call, named) in calls.items():
            yield Attempt(f"{name} in {what}", call, (named, "utt2lab"))


DETECTION = ROOT / "nbs/recipes/detection.ipynb"


def settings(folder: Path) -> Iterator[Attempt]:
    torch.manual_seed(0)
    whole = save_model(build("bands", n_mels=20, embed_dim=4), folder / "whole")
    configs = {
        "empty": "",
        "a list": "- bands\n",
        "text": "bands",
        "a number": "3",
        "not YAML": "name: [bands",
        "code": "!!python/object/apply:os.system ['touch flag']\n",
        "deep": "a: " + "[" * 3000 + "]" * 3000,
        "no name": "n_mels: 20\n",
        "name a list": "name: [bands]\n",
        "unknown": "name: bandz\n",
        "unknown option": "name: bands\nn_mel: 20\n",
        "text option": "name: bands\nn_mels: twenty\n",
        "float option": "name: bands\nn_mels: 20.5\n",
        "true option": "name: bands\nn_mels: true\n",
        "list option": "name: bands\nn_mels: [20]\n",
        "null option": "name: bands\nn_mels: null\n",
        "negative": "name: bands\nn_mels: -20\n",
        "zero": "name: bands\nn_mels: 0\n",
        "a hundred million bands": "name: bands\nn_mels: 100000000\n",
        "a huge embedding": "name: bands\nn_mels: 20\nembed_dim: 100000000000\n",
        "a large embedding": "name: bands\nn_mels: 20\nembed_dim: 100000000\n",
        "head": "name: bands\nn_mels: 20\nhead: 3\n",
        "head options": "name: bands\nn_mels: 20\nhead: oc_softmax\nhead_options: {centres: 900000000}\n",
        "head options text": "name: bands\nhead: aam\nhead_options: text\n",
        "other detector": "name: lcnn_lstm\n",
        "upstream": "name: ssl_linear\nupstream: 'pipe:touch flag'\n",
        "numbered": "1: 2\n",
        "UTF-16": "name: bands\n".encode("utf-16"),
    }
    for i, (what, text) in enumerate(configs.items()):
        home = folder / f"c{i}"
        shutil.copytree(whole, home)
        (home / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        yield Attempt(what, lambda h=home: load_model(h), (f"{home.name}/config.yaml", home.name))
        yield Attempt(f"{what} by command", by_command("score", home, SAMPLE), (f"{home.name}",))
    tensors = build("bands", n_mels=20, embed_dim=4).state_dict()
    rng = random.Random(3)
    data = (whole / "model.safetensors").read_bytes()
    files = {"empty": b"", "text": b"weights", "zeros": bytes(5000), "cut": data[:-10], "header": data[:50]}
    for _ in range(30):
        at = rng.randrange(len(data))
        files[f"flip at {at}"] = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    expected = {name: value.clone() for name, value in load_model(whole).state_dict().items()}
    for i, (what, blob) in enumerate(files.items()):
        home = folder / f"w{i}"
        shutil.copytree(whole, home)
        (home / "model.safetensors").write_bytes(blob)

        def load(home=home):
            found = load_model(home).state_dict()
            return all(torch.equal(found[name], value) for name, value in expected.items())

        yield Attempt(f"weights {what}", load, (home.name,))
    for i, value in enumerate((float("nan"), float("inf"))):
        home = folder / f"n{i}"
        shutil.copytree(whole, home)
        wrong = {name: w.clone() for name, w in tensors.items()}
        wrong["embedding.weight"].view(-1)[3] = value
        save_file(wrong, home / "model.safetensors")
        torch.save(wrong, home / "model.pth")
        yield Attempt(f"weights {value}", lambda h=home: load_model(h), (home.name,))
        yield Attempt(f"weights {value} by command", by_command("score", home, SAMPLE), (home.name,))
        for name in ("model.safetensors", "model.pth"):
            yield Attempt(f"checkpoint {value}", lambda p=home / name: checkpoints.read_weights(p), (name,))


SAMPLE = ROOT / "data_samples/audio/S0001.flac"


def calibrations(folder: Path) -> Iterator[Attempt]:
    labels = [0, 1, 0, 1]
    kinds = (AffineCalibration(), PAVCalibration())
    good = []
    for i, kind in enumerate(kinds):
        good.append(
            json.loads(save_calibration(kind.fit([0.0, 1.0, 2.0, 3.0], labels), folder / f"{i}.json").read_text())
        )
    affine, pav = good
    broken: list[Any] = [None, [], 3, "text", {}, {"kind": None}, {"kind": "cubic"}, {"kind": ["affine"]}]
    for whole in good:
        broken += [{k: v for k, v in whole.items() if k != gone} for gone in ("kind", "parameters", "fitted")]
        broken += [whole | {"fitted": None}, whole | {"fitted": []}, whole | {"parameters": []}]
    for value in (float("nan"), float("inf"), None, "1", [1.0], True, {}):
        broken.append(affine | {"fitted": affine["fitted"] | {"a": value}})
    broken.append(affine | {"fitted": {"b": 0.0}})
    broken.append(affine | {"fitted": {"a": 1.0}})
    broken.append(affine | {"parameters": {"p_spoof": float("nan")}})
    broken.append(affine | {"parameters": {"p_spoof": 0.5, "more": 1}})
    broken.append(affine | {"parameters": {"p_spoof": 3.0}})
    steps = pav["fitted"]
    broken.append(pav | {"fitted": steps | {"llr": steps["llr"][:-1]}})
    broken.append(pav | {"fitted": steps | {"scores": steps["scores"][::-1]}})
    broken.append(pav | {"fitted": steps | {"llr": [float("nan")] * len(steps["llr"])}})
    broken.append(pav | {"fitted": {"scores": [], "llr": []}})
    contents = [json.dumps(x) for x in broken] + ["", "{", "[" * 5000, "\x00"]
    model = save_model(build("bands", n_mels=20, embed_dim=4), folder / "model")
    for i, text in enumerate(contents):
        path = folder / f"b{i}.json"
        path.write_text(text)
        yield Attempt(text[:60], lambda p=path: load_calibration(p), (path.name,))
        if i % 5 == 0:

            def score(text=text):
                (model / "calibration.json").write_text(text)
                return by_command("score", model, SAMPLE, "-o", folder / "out.csv")()

            yield Attempt(f"{text[:60]} by command", score, ("calibration.json",))


class Bomb:
    """A pickle that runs a command when it is opened."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def pickles(folder: Path) -> Iterator[Attempt]:
    trees.tree("partialspoof", folder / "ps")
    labels = folder / "ps/database/segment_labels/train_seglab_0.16.npy"
    bomb = Bomb(f"touch {folder / FLAG}")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    contents = {
        "hostile": header.getvalue() + pickle.dumps(bomb),
        "hostile in a dictionary": header.getvalue() + pickle.dumps({"a": bomb}),
        "cut": header.getvalue() + pickle.dumps({"a": 1})[:-3],
        "a number": header.getvalue() + pickle.dumps(3),
        "no pickle": header.getvalue() + b"text",
        "no header": pickle.dumps(bomb),
        "empty": b"",
        "text": b"0 1 1 0",
    }
    for what, blob in contents.items():

        def read(blob=blob):
            labels.write_bytes(blob)
            return _no_flag(folder, partial.segment_labels, folder / "ps", "train", 0.16)

        yield Attempt(f"labels {what}", read, ("train_seglab_0.16.npy",))
    for what, content in {"hostile": bomb, "in a dictionary": {"model": bomb}, "a list": [1], "text": "x"}.items():
        path = folder / f"{what.replace(' ', '-')}.pth"
        torch.save(content, path)
        yield Attempt(
            f"checkpoint {what}", lambda p=path: _no_flag(folder, checkpoints.read_weights, p), (path.name,)
        )
        yield Attempt(
            f"upstream {what}", lambda p=path: _no_flag(folder, pretrained.read_checkpoint, p), (path.name,)
        )
    for what, blob in {
        "cut": pickle.dumps(bomb)[:-1],
        "empty": b"",
        "zeros": bytes(3000),
        "text": b"weights",
    }.items():
        path = folder / f"raw-{what}.pth"
        path.write_bytes(blob)
        yield Attempt(
            f"checkpoint {what}", lambda p=path: _no_flag(folder, checkpoints.read_weights, p), (path.name,)
        )
        yield Attempt(
            f"upstream {what}", lambda p=path: _no_flag(folder, pretrained.read_checkpoint, p), (path.name,)
        )


KINDS: dict[str, Callable[[Path], Iterator[Attempt]]] = {
    "a name that is a command, in lists, indexes, redirections, manifests": names,
    "a shard with a wrong byte, an empty block, an end cut off": damaged,
    "what a shard says of a recording, and empty shards": notes,
    "times that are no times": times,
    "lists with a line too many, too few, or half a file": torn,
    "scores that are no real numbers": numbers,
    "tables, lists, keys in another encoding": texts,
    "settings and weights of a model folder": settings,
    "calibrations": calibrations,
    "pickles": pickles,
}


def table() -> dict[str, Counter]:
    """How the attempts of each kind ended."""
    found = {}
    for kind, attempts in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            counted: Counter = Counter()
            for attempt in attempts(Path(folder)):
                ended = outcome(attempt)
                counted[ended if ended in ("refused", "right") else "other"] += 1
            found[kind] = counted
    return found


if __name__ == "__main__":
    print("| kind of attempt | tried | refused clearly | right answer | other |\n|---|---:|---:|---:|---:|")
    for kind, ended in table().items():
        print(f"| {kind} | {ended.total()} | {ended['refused']} | {ended['right']} | {ended['other']} |")
