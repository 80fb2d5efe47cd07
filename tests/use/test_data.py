"""From a corpus to files that can be trained on, command by command."""

import pandas as pd

from tests.conftest import ROOT
from tests.data.trees import lists, sound, tree
from tests.use.shell import command, quick
from wedefense_nb.data import downloads
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.features.stored import open_dataset
from wedefense_nb.features.upstreams import tiny_checkpoint


def test_corpora_are_listed_by_task():
    listed = quick("corpora")
    assert listed.returncode == 0 and listed.stdout.count("\n    http") == 21
    assert "asvspoof5 (detection, 1,004,081 trials, " in listed.stdout
    assert "deepfake_eval_2024 (detection, 1,980 trials, 56.5 h, " in listed.stdout
    assert "musan (augmentation, 109 h, " in listed.stdout and "no download" in listed.stdout
    tasks = {task: quick("corpora", task).stdout for task in ("detection", "localization", "augmentation")}
    assert "musan" in tasks["augmentation"] and "musan" not in tasks["localization"] + tasks["detection"]
    assert sum(text.count("\n    http") for text in tasks.values()) == 21
    wrong = quick("corpora", "cooking")
    assert wrong.returncode == 1 and "use detection, localization or augmentation" in wrong.stderr


def test_a_corpus_is_prepared_with_report_and_counts(tmp_path):
    out = tmp_path / "out"
    done = quick("prepare", "partialspoof", tree("partialspoof", tmp_path / "ps"), out, "-o", "resolution=0.16")
    assert done.returncode == 0, done.stderr
    assert "5 utterances, 4 segments" in done.stdout and "2580" in done.stdout and "<NA>" not in done.stdout
    assert "train bonafide: published 2,580, found 1; spoof: published 22,800, found 2\n" in done.stdout
    manifest = Manifest.read(out)  # looks for the recordings
    assert len(manifest) == 5 and all(path.is_absolute() for path in manifest.paths())
    assert (out / "report.csv").read_text().startswith("problem,path,detail")
    assert pd.read_csv(out / "counts.csv").published.max() == 63882


def test_strict_writes_no_manifest_if_anything_is_odd(tmp_path):
    root = tree("partialspoof", tmp_path / "ps")
    sound(root / "database/train/con_wav/CON_T_9.wav")
    lenient = quick("prepare", "partialspoof", root, tmp_path / "lenient")
    assert lenient.returncode == 0 and "1 extra, first: train/con_wav/CON_T_9.wav" in lenient.stderr
    done = quick("prepare", "partialspoof", root, tmp_path / "strict", "--strict")
    assert done.returncode == 1 and "1 extra, first: train/con_wav/CON_T_9.wav" in done.stderr
    assert "1 problems, see" in done.stderr and "no manifest written" in done.stderr
    assert not (tmp_path / "strict/utterances.csv").exists() and (tmp_path / "strict/report.csv").is_file()


def test_lists_are_enough_if_that_is_asked_for(tmp_path):
    root = lists("in_the_wild", tmp_path / "w")
    done = quick("prepare", "in_the_wild", root, tmp_path / "wild", "--no-files")
    assert done.returncode == 0 and len(Manifest.read(tmp_path / "wild", files=False)) == 3


def test_prepare_refuses_in_one_line(tmp_path):
    (tmp_path / "w").mkdir()
    for arguments, what in [
        (("asvspoof5", tmp_path / "w"), "Expected here: ASVspoof5_protocols"),
        (
            ("partialspoof", tmp_path / "w", "-o", "resolution"),
            "option 'resolution' has no value: write -o resolution=",
        ),
        (("partialspoof", tmp_path / "w", "-o", "=1"), "write -o NAME=VALUE"),
        (("asvspoof6", tmp_path / "w"), "unknown corpus 'asvspoof6'"),
    ]:
        name, root, *options = arguments
        done = quick("prepare", name, root, tmp_path / "no", *options)
        assert done.returncode == 1 and what in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_download_says_what_it_fetched(tmp_path, monkeypatch):
    asked = []

    def fetch(*given):
        asked.append(given)
        return pd.DataFrame({"file": ["a.tar"], "bytes": [3]})

    monkeypatch.setattr(downloads, "download", fetch)
    done = quick(
        "download", "asvspoof5", tmp_path, "--only", "flac_T", "--mirror", "https://x.org", "--no-extract"
    )
    assert done.returncode == 0 and "a.tar" in done.stdout
    assert asked == [("asvspoof5", tmp_path, "https://x.org", "flac_T", False, None)]


def test_download_refuses_in_one_line(tmp_path):
    done = quick("download", "mlaad", tmp_path)
    assert done.returncode == 1 and "see https://deepfake-total.com/mlaad" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_recordings_are_packed_by_split(tmp_path, samples):
    arguments = ["shard", ROOT / "data_samples", tmp_path / "out", "--split", "dev", "--size", 50]
    done = quick(*arguments)
    made = Manifest.read(tmp_path / "out")
    assert done.returncode == 0 and "159 recordings in 4 shards" in done.stdout
    assert set(made.utterances.utt) == set(samples.subset(split="dev").utterances.utt)
    assert made.utterances.path.nunique() == 4
    again = quick(*arguments)
    assert again.returncode == 1 and "already holds shards" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1


def test_features_are_extracted_and_read(tmp_path, samples):
    few = samples.subset(utt=samples.utterances.utt[:5].tolist())
    few.utterances["path"] = [str(path) for path in few.paths()]
    few.write(tmp_path / "few")
    network = tiny_checkpoint(tmp_path / "tiny.pt")
    arguments = ["extract", network, tmp_path / "few", tmp_path / "features"]
    done = command(*arguments, "--layers", "1", "--device", "cpu")
    assert done.returncode == 0 and "5 recordings, 1 shards" in done.stdout, done.stderr
    made = Manifest.read(tmp_path / "features")
    assert open_dataset(made)[0, 2].wave.shape[1] == 32
    wrong = quick(*arguments, "--layers", "9")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: layers must be")
    other = quick(*arguments, "--layers", "all")
    assert other.returncode == 1 and "choose an empty folder" in other.stderr


def test_real_recordings_get_doubles(tmp_path):
    corpus = Manifest.read(ROOT / "data_samples")
    few = corpus.subset(utt=["S0000", "S0001", "S0002"])
    few.utterances["path"] = [str(path) for path in few.paths()]
    few.write(tmp_path / "few")
    more = ("--routes", "images,psola", "--workers", "1")
    done = quick("copies", tmp_path / "few", tmp_path / "out", *more)
    assert done.returncode == 0 and f"5 recordings, 2 of them doubles: {tmp_path / 'out'}" in done.stdout
    assert Manifest.read(tmp_path / "out").utterances.pair.tolist()[-2:] == ["S0000", "S0000"]
    wrong = quick("copies", tmp_path / "few", tmp_path / "other", "--routes", "psolla")
    assert wrong.returncode == 1 and "did you mean 'psola'" in wrong.stderr


def test_corpora_are_mixed_unless_they_share(few, tmp_path):
    few.write(tmp_path / "few")
    u = few.utterances.assign(path=[str(path.resolve()) for path in few.paths()])
    train, rest = u[u.split == "train"], u[u.split != "train"]
    for name, part in {"a": train, "b": rest}.items():
        Manifest(part).write(tmp_path / name)
    (tmp_path / "a" / "noise_rir.csv").write_text("id,path,kind,duration\nhum,hum.wav,noise,1.0\n")
    done = quick("mix", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--out", tmp_path / "ab")
    assert done.returncode == 0, done.stderr
    assert f"{len(u)} utterances of 2 corpora" in done.stdout
    assert len(Manifest.read(tmp_path / "ab")) == len(u)
    noise = pd.read_csv(tmp_path / "ab" / "noise_rir.csv")
    assert noise.id.tolist() == ["a-hum"] and noise.path.tolist() == [str(tmp_path / "a" / "hum.wav")]
    real = train[train.label == "bonafide"]
    Manifest(real.assign(utt="LJ001-000" + pd.Series(range(len(real)), real.index).astype(str))).write(
        tmp_path / "c"
    )
    Manifest(real.assign(utt="LJ001-0000", split="eval").head(1)).write(tmp_path / "d")
    pair = [f"c={tmp_path / 'c'}", f"d={tmp_path / 'd'}", "--out", tmp_path / "cd"]
    refused = quick("mix", *pair)
    assert refused.returncode == 1 and "one corpus trains on what another tests with" in refused.stderr
    assert "warning: one class only in c, d" in refused.stderr and not (tmp_path / "cd").exists()
    assert quick("mix", *pair, "--anyway").returncode == 0 and (tmp_path / "cd" / "utterances.csv").is_file()
    twice = quick("mix", f"a={tmp_path / 'a'}", f"a={tmp_path / 'b'}", "--out", tmp_path / "aa")
    assert twice.returncode == 1 and "two corpora have one name" in twice.stderr
