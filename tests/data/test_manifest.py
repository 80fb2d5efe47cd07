import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wedefense_nb.data.audio import save
from wedefense_nb.data.manifest import (
    Manifest,
    ManifestError,
    from_folder,
    from_kaldi,
    from_rttm,
    open_manifest,
    to_kaldi,
    to_rttm,
    utt_rng,
)


def tables(n=4):
    u = pd.DataFrame(
        {
            "utt": [f"u{i}" for i in range(n)],
            "path": [f"u{i}.wav" for i in range(n)],
            "label": ["bonafide", "spoof"] * (n // 2),
            "split": "train",
            "speaker": "s",
            "attack": ["", "A01"] * (n // 2),
            "codec": "",
            "duration": 2.0,
            "sample_rate": 16000,
        }
    )
    s = pd.DataFrame(
        {
            "utt": "u1",
            "start": [0.0, 0.5, 1.0],
            "end": [0.5, 1.0, 2.0],
            "label": ["bonafide", "spoof", "bonafide"],
            "attack": ["", "A01", ""],
        }
    )
    return u, s


def change(table, row, **values):
    table = table.copy()
    for column, value in values.items():
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
    return table


u, s = tables()
BROKEN = {
    "duplicate utt": (change(u, 1, utt="u0"), s.iloc[:0]),
    "empty utt": (change(u, 0, utt=""), s),
    "unknown label": (change(u, 0, label="real"), s),
    "unknown split": (change(u, 0, split="test"), s),
    "bona fide with an attack": (change(u, 0, attack="A01"), s),
    "duration is not a positive": (change(u, 0, duration=0.0), s),
    "sample rate is not positive": (change(u, 0, sample_rate=0), s),
    "segment with an unknown label": (u, change(s, 0, label="fake")),
    "segment of an unknown utt": (u, change(s, 0, utt="u9")),
    "segment out of range": (u, change(s, 2, end=2.01)),
    "0 <= start < end": (u, change(s, 0, start=0.5)),
    "overlapping segments": (u, change(s, 0, end=0.6)),
    "spoof segment in a bona fide": (u, s.assign(utt="u0")),
    "whose segments are all bona fide": (u, s.assign(label="bonafide")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_bad_tables_are_refused_with_the_rows(what):
    with pytest.raises(ManifestError, match=what) as error:
        Manifest(*BROKEN[what])
    assert "rows\n" in str(error.value)


def test_all_findings_come_at_once():
    with pytest.raises(ManifestError) as error:
        Manifest(change(u, 0, label="real"), change(s, 2, end=9.0))
    assert "unknown label" in str(error.value) and "out of range" in str(error.value)


def test_missing_columns_and_files_are_named(tmp_path):
    with pytest.raises(ManifestError, match="missing columns.*codec"):
        Manifest(u.drop(columns="codec"))
    Manifest(u, s).write(tmp_path)
    with pytest.raises(ManifestError, match="missing file: 4 rows"):
        Manifest.read(tmp_path)
    with pytest.raises(ManifestError, match="no utterances.csv"):
        Manifest.read(tmp_path / "nowhere")


def test_write_and_read_keep_everything(tmp_path):
    m = Manifest(u.assign(extra=["a", "", "007", "ä b"]), s)
    back = Manifest.read(m.write(tmp_path), files=False)
    pd.testing.assert_frame_equal(back.utterances, m.utterances)
    pd.testing.assert_frame_equal(back.segments, m.segments)


def test_ids_that_look_like_numbers_stay_text(tmp_path):  # pitfall 21
    m = Manifest(u.assign(utt=["0007", "1e5", "nan", "-"]))
    assert Manifest.read(m.write(tmp_path), files=False).utterances.utt.tolist() == [
        "0007",
        "1e5",
        "nan",
        "-",
    ]


def test_bom_and_crlf_are_no_part_of_the_first_column(tmp_path):
    Manifest(u, s).write(tmp_path)
    for name in ("utterances.csv", "segments.csv"):
        text = (tmp_path / name).read_text().replace("\n", "\r\n")
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(Manifest.read(tmp_path, files=False).segments) == 3


def test_dash_means_none():
    m = Manifest(
        u.assign(attack=["-", "A01", "-", "A01"], codec="-", speaker="-"), s.replace({"attack": {"": "-"}})
    )
    assert m.utterances.attack.tolist() == ["", "A01", "", "A01"] and m.segments.attack.tolist() == ["", "A01", ""]
    assert set(m.utterances.codec) == set(m.utterances.speaker) == {""}


def test_what_is_unknown_is_unknown_openly(tmp_path):
    unread = u.assign(duration=np.nan, sample_rate=0)
    back = Manifest.read(Manifest(unread, s).write(tmp_path), files=False)
    assert (
        back.utterances.duration.isna().all()
        and set(back.utterances.sample_rate) == {0}
        and len(back.segments) == 3
    )
    for half in (u.assign(duration=np.nan), u.assign(sample_rate=0)):
        with pytest.raises(ManifestError, match="not a positive|not positive"):
            Manifest(half)
    assert set(Manifest(u.assign(label="", attack="")).utterances.label) == {""}
    Manifest(u.assign(label=["bonafide", "spoof", "", ""], split=["train", "train", "eval", "eval"], attack=""))
    with pytest.raises(ManifestError, match="no label .*: 1 rows"):
        Manifest(u.assign(label=["bonafide", "", "spoof", "spoof"], attack=""))


def test_subset_keeps_segments_of_its_utterances():
    m = Manifest(u, s)
    assert len(m.subset(utt="u1").segments) == 3 and len(m.subset(utt=["u0", "u2"]).segments) == 0
    with pytest.raises(ValueError, match="unknown column 'colour'; there are utt"):
        m.subset(colour="blue")


def test_rounded_durations_are_tolerated_to_a_sample():
    Manifest(u.assign(duration=1.9999501), s)
    with pytest.raises(ManifestError, match="out of range"):
        Manifest(u.assign(duration=1.9998), s)


def with_sounds(folder):
    for i in range(4):
        save(
            folder / f"u{i}.wav",
            0.1 * np.random.default_rng(i).normal(size=8000).clip(-1, 1).astype(np.float32),
            8000,
        )
    return Manifest(u.assign(duration=1.0, sample_rate=8000), root=folder)


def test_kaldi_lists_round_trip_and_read_rates_from_headers(tmp_path):
    folder = to_kaldi(with_sounds(tmp_path / "a b"), tmp_path / "kaldi")
    back = from_kaldi(folder, split="train").utterances
    assert back.utt.tolist() == u.utt.tolist() and back.label.tolist() == u.label.tolist()
    assert set(back.sample_rate) == {8000} and set(back.duration) == {1.0}  # never an assumed rate
    assert (folder / "lab2utt").read_text() == "bonafide u0 u2\nspoof u1 u3\n"
    assert set(back.speaker) == {"s"}
    nobody = Manifest(
        with_sounds(tmp_path / "c").utterances.assign(speaker=["", "s", "s", ""]), root=tmp_path / "c"
    )
    to_kaldi(nobody, folder)
    assert (folder / "utt2spk").read_text() == "u0 u0\nu1 s\nu2 s\nu3 u3\n"


def test_kaldi_lists_that_disagree_are_refused(tmp_path):
    folder = to_kaldi(with_sounds(tmp_path), tmp_path / "kaldi")
    (folder / "utt2lab").write_text("u0 bonafide\nu1 spoof\nu2 bonafide\n")
    with pytest.raises(ManifestError, match="differ"):
        from_kaldi(folder)
    (folder / "utt2lab").write_text("u0 bonafide\nu0 spoof\n")
    with pytest.raises(ManifestError, match="more than once"):
        from_kaldi(folder)
    (folder / "utt2lab").write_text("u0\n")
    with pytest.raises(ManifestError, match="without a value"):
        from_kaldi(folder)


def test_rttm_round_trip_is_exact_to_the_sample(tmp_path):
    m = Manifest(u, s.assign(start=[0.0, 0.5000625, 1.0], end=[0.5000625, 1.0, 2.0]))
    back = from_rttm(m, to_rttm(m, tmp_path / "rttm"))
    assert np.array_equal(np.rint(back.segments.end * 16000), np.rint(m.segments.end * 16000))
    assert back.segments.label.tolist() == m.segments.label.tolist()


def test_rttm_labels_are_read_by_name_not_by_order(tmp_path):  # a toolkit flips polarity here
    lines = [
        "SPEAKER u1 1 0.0 1.0 <NA> <NA> spoof <NA> <NA>",
        "SPEAKER u1 1 1.0 1.0 <NA> <NA> bonafide <NA> <NA>",
        "SPEAKER u1 1 2.0 0.00001 <NA> <NA> spoof <NA> <NA>",
    ]
    (tmp_path / "rttm").write_text("\n".join(lines))
    back = from_rttm(Manifest(u), tmp_path / "rttm").segments
    assert back.label.tolist() == ["spoof", "bonafide"] and back.attack.tolist() == ["A01", ""]
    (tmp_path / "rttm").write_text("\n".join(lines).replace("u1", "u3"))
    assert from_rttm(Manifest(u, s), tmp_path / "rttm").segments.utt.tolist() == ["u3", "u3"]
    (tmp_path / "rttm").write_text("SPEAKER u1 1 0.0 1.0 spoof")
    with pytest.raises(ManifestError, match="not RTTM"):
        from_rttm(Manifest(u), tmp_path / "rttm")


def test_rttm_that_contradicts_a_label_is_refused(tmp_path):  # pitfall 2
    line = "SPEAKER {} 1 0.0 2.0 <NA> <NA> {} <NA> <NA>\n".format
    (tmp_path / "rttm").write_text(line("u0", "bonafide") + line("u1", "spoof"))
    assert from_rttm(Manifest(u), tmp_path / "rttm").segments.empty  # they only repeat the labels
    (tmp_path / "rttm").write_text(line("u0", "spoof"))
    with pytest.raises(ManifestError, match="spoof segment in a bona fide utterance"):
        from_rttm(Manifest(u), tmp_path / "rttm")
    (tmp_path / "rttm").write_text(line("u1", "bonafide"))
    with pytest.raises(ManifestError, match="whose segments are all bona fide"):
        from_rttm(Manifest(u), tmp_path / "rttm")
    unlabelled = Manifest(u.assign(label="", attack=""))
    (tmp_path / "rttm").write_text(line("u0", "bonafide"))
    assert from_rttm(unlabelled, tmp_path / "rttm").segments.empty


def test_a_plain_folder_of_sounds_will_do(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 8000).astype(np.float32)
    save(tmp_path / "in/ann/one.wav", wave)
    save(tmp_path / "in/bob/deep/one.flac", wave[:4000], 8000)
    (tmp_path / "in/ann/notes.txt").write_text("no sound")
    for m in (from_folder(tmp_path / "in", label="bonafide"), open_manifest(tmp_path / "in", label="bonafide")):
        table = m.utterances
        assert table.utt.tolist() == ["ann-one", "bob-deep-one"] and table.speaker.tolist() == ["ann", "deep"]
        assert table.duration.tolist() == [0.5, 0.5] and table.sample_rate.tolist() == [16000, 8000]
        assert set(table.label) == {"bonafide"} and all(p.is_file() for p in m.paths())
    one = from_folder(tmp_path / "in/ann/one.wav")
    assert one.utterances.utt.tolist() == ["one"] and one.utterances.label.tolist() == [""]
    with pytest.raises(FileNotFoundError, match="no sound files"):
        from_folder(tmp_path / "in/none")
    with pytest.raises(ValueError, match="label"):
        from_folder(tmp_path / "in", label="fake")


def test_what_is_pointed_at_is_opened(tmp_path):
    m = with_sounds(tmp_path)
    m.write(tmp_path)
    assert open_manifest(m) is m
    assert open_manifest(tmp_path, label="spoof").utterances.equals(m.utterances)  # the list is believed


def test_random_draws_are_the_same_on_every_machine():
    assert utt_rng("a1", seed=1, epoch=2).integers(100, size=4).tolist() == [41, 13, 63, 73]
    assert utt_rng("a1", seed=2, epoch=1).integers(100, size=4).tolist() != [41, 13, 63, 73]


@given(st.text(min_size=1), st.integers(0, 1000), st.integers(0, 1000))
def test_random_draws_depend_on_seed_epoch_and_utterance_only(utt, seed, epoch):
    draw = utt_rng(utt, seed, epoch).integers(2**60)
    assert draw == utt_rng(utt, seed, epoch).integers(2**60)
    others = {
        utt_rng(utt + "x", seed, epoch).integers(2**60),
        utt_rng(utt, seed + 1, epoch).integers(2**60),
        utt_rng(utt, seed, epoch + 1).integers(2**60),
    }
    assert draw not in others and len(others) == 3


def test_at_most_so_many_are_drawn_and_keep_their_order(samples):
    few = samples.at_most(50, seed=3)
    places = samples.utterances.utt[samples.utterances.utt.isin(few.utterances.utt)].tolist()
    assert few.utterances.utt.tolist() == places and len(places) == 50
    assert set(few.segments.utt) <= set(places)
    assert samples.at_most(50, seed=3).utterances.equals(few.utterances)
    assert not samples.at_most(50).utterances.equals(few.utterances)
    assert samples.at_most(len(samples)) is samples
