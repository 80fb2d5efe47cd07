"""Packages of Debian, made here in miniature: fetched by an apt that is a script, unpacked, told apart."""

import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile

import av
import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from tests.use.shell import quick
from wedefense_nb.augmentation.policies import noise_sources
from wedefense_nb.data import downloads
from wedefense_nb.data.audio import AudioError, decode, info, load
from wedefense_nb.data.corpora import CORPORA, CorpusError, noise_table, survey
from wedefense_nb.data.downloads import FETCHERS, download
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.data.parsers import voices as module
from wedefense_nb.data.parsers.voices import PACKAGES, VOICES, ar_members, fetch_package, unpack_deb

RU = "asterisk-core-sounds-ru-g722"
CS = "fillets-ng-data-cs"
PBX = "usr/share/asterisk/sounds"
FISH = "usr/share/games/fillets-ng"


def speech(seconds=0.4, rate=16000):
    """A buzz at 120 Hz under a slow envelope: synthetic speech of a kind."""
    t = np.arange(int(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12))
    return (0.2 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def g722(wave):
    encoder = av.CodecContext.create("g722", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 16000, "mono", "s16"
    encoder.open()
    frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate = 16000
    return b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)])


def as_file(wave, rate, kind, subtype=None):
    file = io.BytesIO()
    sf.write(file, wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


def gsm(wave):
    """Bare GSM: its frames of 33 bytes. RAW of libsndfile is that."""
    return as_file(wave, 8000, "RAW", "GSM610")


def tar_of(files, mode="w:xz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            data = b"" if content is member else content
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def deb(path, files, inner="data.tar.xz", data=None):
    mode = {"data.tar.xz": "w:xz", "data.tar.gz": "w:gz", "data.tar": "w:"}.get(inner, "w:")
    data = tar_of(files, mode) if data is None else data
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (inner, data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def prompts():
    """What is in the miniature of each package: speech, beeps, minor characters, and things that are no sounds."""
    ogg = as_file(speech(0.5, 22050), 22050, "OGG", "VORBIS")
    files = {
        RU: {f"{PBX}/ru_RU_f_IvrvoiceRU/{n}.g722": g722(speech()) for n in ("vm-hello", "beep", "digits/1")},
        "asterisk-prompt-es-co": {f"{PBX}/es/vm-hola.gsm": gsm(speech(0.4, 8000))},
        CS: {f"{FISH}/sound/cellar/cs/pra-{who}-kniha.ogg": ogg for who in ("m", "v", "x")},
        "fillets-ng-data": {
            f"{FISH}/music/rybky01.ogg": ogg,
            f"{FISH}/sound/cellar/en/splash.ogg": ogg,
            f"{FISH}/images/fish.png": b"picture",
        },
    }
    files["asterisk-moh-opsound-g722"] = {"usr/share/asterisk/moh/song.g722": g722(speech(1.0))}
    files["tuxpaint-stamps-default"] = {
        "usr/share/tuxpaint/stamps/animals/cow_desc_bg.ogg": ogg,
        "usr/share/tuxpaint/stamps/animals/cow.ogg": ogg,
    }
    for name in files:
        files[name][f"usr/share/doc/{name}/copyright"] = b"License: GPL-2"
    return files


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of packages, of another release than Debian 12."""
    folder = tmp_path_factory.mktemp("debs")
    for name, files in prompts().items():
        deb(folder / f"{name}_9.9-1_all.deb", files)
    return folder


@pytest.fixture(scope="module")
def corpus(packages, tmp_path_factory):
    """The same, unpacked."""
    folder = tmp_path_factory.mktemp("corpus")
    download("voices", folder, root=packages)
    return folder


def script(path, text):
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def apt(packages, tmp_path, monkeypatch):
    """apt-cache and apt-get as scripts, and nothing else on the path. `mode` says how apt-get goes wrong."""
    commands = tmp_path / "bin"
    commands.mkdir()
    known = {}
    for path in packages.glob("*.deb"):
        known[path.name.split("_")[0]] = (str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    script(
        commands / "apt-cache",
        f"""
import sys
known = {known!r}
for name in sys.argv[3:]:
    if name in known:
        print(f"Package: {{name}}\\nVersion: 9.9-1\\nDescription: voices\\n of people")
        print(f"SHA256: {{known[name][1]}}\\n")
""",
    )
    script(
        commands / "apt-get",
        f"""
import os, pathlib, sys
known = {known!r}
name = sys.argv[2]
data = pathlib.Path(known[name][0]).read_bytes()
mode = os.environ.get("MODE", "")
log = pathlib.Path({str(tmp_path / "asked")!r})
log.write_text((log.read_text() if log.exists() else "") + name + "\\n")
if mode == "other":
    data = data[:-1] + b"!"
pathlib.Path(name + "_9.9-1_all.deb").write_bytes(data[: len(data) // 2] if mode == "cut" else data)
if mode == "cut":
    print("E: Failed to fetch: connection timed out", file=sys.stderr)
    sys.exit(100)
""",
    )
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.setattr(module, "PACKAGES", {name: PACKAGES[name] for name in known})
    return tmp_path


def test_files_without_a_header_are_known_by_their_suffix(tmp_path):
    (tmp_path / "a.g722").write_bytes(g722(speech(0.5)))
    (tmp_path / "b.GSM").write_bytes(gsm(speech(0.5, 8000)))
    assert info(tmp_path / "a.g722") == (16000, 1, 8000, 0.5)
    assert info(tmp_path / "b.GSM")[:3] == (8000, 1, 4000)
    for name, wave in (("a.g722", speech(0.5)), ("b.GSM", speech(0.5, 8000))):
        samples = decode(tmp_path / name)[0][0]
        n = len(wave) - 160
        lags = [np.corrcoef(wave[:n], samples[lag : lag + n])[0, 1] for lag in range(60)]
        assert max(lags) > 0.9, name
    data = (tmp_path / "a.g722").read_bytes()
    assert np.array_equal(load("elsewhere.g722", data=data)[0], load(tmp_path / "a.g722")[0])
    with pytest.raises(AudioError):
        load("elsewhere.raw", data=data)
    (tmp_path / "empty.g722").write_bytes(b"")
    with pytest.raises(AudioError, match="empty file"):
        info(tmp_path / "empty.g722")


def test_code_that_looks_like_something_else_is_what_its_name_says():
    """Bare code may begin with any bytes, also those of an MP3 or a RIFF."""
    code = g722(speech(0.5))
    for head in (b"\xff\xfb\x90\x00", b"ID3\x04", b"RIFF", b"OggS"):
        assert decode("x.g722", head + code[4:])[0].shape == (1, 8000)


@pytest.mark.parametrize("inner", ["data.tar.xz", "data.tar.gz", "data.tar"])
def test_only_sounds_and_copyright_are_unpacked(tmp_path, inner):
    link = tarfile.TarInfo()
    link.type = tarfile.SYMTYPE
    link.linkname = "../../../../../etc"
    away = tarfile.TarInfo()
    away.type = tarfile.SYMTYPE
    away.linkname = "/etc/passwd"
    files = {
        "./usr/share/a/x.g722": b"sound",
        "./usr/share/doc/p/copyright": b"GPL",
        "./usr/bin/program": b"no",
        "./usr/share/a/link": link,
        "./usr/share/a/away.ogg": away,
        "./usr/share/a/link/y.ogg": b"behind a link",
    }
    assert unpack_deb(deb(tmp_path / "p.deb", files, inner), tmp_path / "p") == 3
    found = sorted(p.relative_to(tmp_path / "p").as_posix() for p in (tmp_path / "p").rglob("*") if p.is_file())
    assert found == ["usr/share/a/link/y.ogg", "usr/share/a/x.g722", "usr/share/doc/p/copyright"]
    assert not any(p.is_symlink() for p in (tmp_path / "p").rglob("*"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "p.deb"]


@pytest.mark.parametrize("name", ["../out.ogg", "usr/../../out.ogg"])
def test_names_that_lead_out_refuse_the_whole_package(tmp_path, name):
    bad = deb(tmp_path / "in/p.deb", {"a.ogg": b"fine", name: b"bad"})
    with pytest.raises(CorpusError, match="written elsewhere"):
        unpack_deb(bad, tmp_path / "in/p")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "p.deb"]


def test_an_absolute_name_stays_inside(tmp_path):
    unpack_deb(deb(tmp_path / "p.deb", {f"{tmp_path}/abs.ogg": b"x"}), tmp_path / "p")
    assert not (tmp_path / "abs.ogg").exists() and len(list((tmp_path / "p").rglob("abs.ogg"))) == 1


def test_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 1000)
    bad = deb(tmp_path / "p.deb", {"a.ogg": b"0" * 600, "b.ogg": b"0" * 401})
    with pytest.raises(CorpusError, match="more than 1,000 bytes"):
        unpack_deb(bad, tmp_path / "p")
    assert unpack_deb(deb(tmp_path / "q.deb", {"a.ogg": b"0" * 1000}), tmp_path / "q") == 1


@pytest.mark.parametrize("keep", [0, 5, 40, 100, 150, 0.5, 0.8, 0.99])
def test_a_package_that_is_cut_off_is_refused_and_leaves_nothing(tmp_path, keep):
    rng = np.random.default_rng(0)
    data = deb(tmp_path / "x.deb", {"a.ogg": rng.bytes(5000), "b.ogg": rng.bytes(5000)}).read_bytes()
    (tmp_path / "x.deb").unlink()
    path = tmp_path / "cut.deb"
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CorpusError, match="cut.deb"):
        unpack_deb(path, tmp_path / "p")
    assert [p.name for p in tmp_path.iterdir()] == ["cut.deb"]
    if isinstance(keep, float):
        with pytest.raises(CorpusError, match="cut off or broken after"):
            ar_members(path)


def test_what_is_no_package_is_said(tmp_path):
    (tmp_path / "page.deb").write_text("<html>not found</html>")
    with pytest.raises(CorpusError, match="does not begin with"):
        ar_members(tmp_path / "page.deb")
    cut = tar_of({"a.ogg": np.random.default_rng(1).bytes(4000)})[:2000]
    with pytest.raises(CorpusError, match="cut off or broken"):
        unpack_deb(deb(tmp_path / "inner.deb", {}, data=cut), tmp_path / "p")
    wrong = deb(tmp_path / "none.deb", {}, inner="other.tar.xz")
    with pytest.raises(CorpusError, match="found debian-binary, control.tar.xz, other.tar.xz in it"):
        unpack_deb(wrong, tmp_path / "p")
    odd = bytearray(wrong.read_bytes())
    odd[8 + 48] = ord("-")  # a size that is no number
    (tmp_path / "odd.deb").write_bytes(odd)
    with pytest.raises(CorpusError, match="broken after 8 bytes"):
        ar_members(tmp_path / "odd.deb")


def test_unpacking_again_replaces_and_a_failure_does_not(tmp_path):
    unpack_deb(deb(tmp_path / "p.deb", {"old.ogg": b"old"}), tmp_path / "p")
    with pytest.raises(CorpusError):
        unpack_deb(deb(tmp_path / "bad.deb", {"new.ogg": b"new", "../out.ogg": b""}), tmp_path / "p")
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["old.ogg"]
    unpack_deb(deb(tmp_path / "p.deb", {"new.ogg": b"new"}), tmp_path / "p")
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["new.ogg"]


def test_other_compression_goes_through_dpkg(tmp_path, monkeypatch):
    inner = tar_of({"a.ogg": b"sound"}, "w:")
    path = deb(tmp_path / "p.deb", {}, inner="data.tar.zst", data=gzip.compress(inner))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match="compressed as data.tar.zst: unpack it on a machine that has dpkg-deb"):
        unpack_deb(path, tmp_path / "p")
    (tmp_path / "inner.tar").write_bytes(inner)
    script(
        tmp_path / "dpkg-deb",
        f"import sys\nsys.stdout.buffer.write(open({str(tmp_path / 'inner.tar')!r}, 'rb').read())",
    )
    assert unpack_deb(path, tmp_path / "p") == 1 and (tmp_path / "p/a.ogg").read_bytes() == b"sound"


def test_apt_fetches_checks_and_unpacks_once(apt):
    table = download("voices", apt / "c")
    assert table.archive.tolist() == list(module.PACKAGES) and set(table.checksum) == {"agrees"}
    assert set(table.version) == {"9.9-1"} and table.unpacked.all()
    written = pd.read_csv(apt / "c/packages.csv")
    assert (
        written.sha256.str.fullmatch("[0-9a-f]{64}").all() and written.archive.tolist() == table.archive.tolist()
    )
    asked = (apt / "asked").read_text()
    again = download("voices", apt / "c")
    assert not again.unpacked.any() and (apt / "asked").read_text() == asked
    assert len(download("voices", apt / "d", only="-ru-", extract=False)) == 1
    assert not (apt / "d" / RU).exists() and (apt / "d" / f"{RU}_9.9-1_all.deb").is_file()


def test_an_interrupted_download_leaves_nothing_and_goes_on(apt, monkeypatch):
    monkeypatch.setenv("MODE", "cut")
    with pytest.raises(CorpusError, match=r"`apt-get download` failed \(E: Failed to fetch.*--root FOLDER"):
        download("voices", apt / "c", only=RU)
    assert list((apt / "c").iterdir()) == []
    monkeypatch.setenv("MODE", "")
    assert download("voices", apt / "c", only=RU).checksum.tolist() == ["agrees"]


def test_another_file_than_announced_is_not_kept(apt, monkeypatch):
    monkeypatch.setenv("MODE", "other")
    with pytest.raises(CorpusError, match="not the package that apt announces"):
        download("voices", apt / "c", only=RU)
    assert list((apt / "c").iterdir()) == []


def test_an_older_or_broken_package_is_replaced(apt):
    download("voices", apt / "c", only=RU)
    path = apt / "c" / f"{RU}_9.9-1_all.deb"
    right = path.read_bytes()
    path.write_bytes(right[:-2])
    path.rename(apt / "c" / f"{RU}_9.8-1_all.deb")
    table = download("voices", apt / "c", only=RU)
    assert [p.read_bytes() for p in (apt / "c").glob("*.deb")] == [right] and not table.unpacked.any()
    assert path.is_file()


def test_a_new_version_is_unpacked_again(packages, tmp_path):
    for number in (1, 2):
        files = {f"{PBX}/ru_RU_f_IvrvoiceRU/{number}.g722": g722(speech())}
        for old in (tmp_path / "debs").glob("*.deb"):
            old.unlink()
        deb(tmp_path / "debs" / f"{RU}_{number}_all.deb", files)
        assert download("voices", tmp_path / "c", root=tmp_path / "debs").unpacked.tolist() == [True]
        assert [p.stem for p in (tmp_path / "c").rglob("*.g722")] == [str(number)]


def test_apt_that_does_not_know_a_package(apt, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", {"no-such-package": PACKAGES[RU]})
    with pytest.raises(CorpusError, match="apt does not know no-such-package: run `apt-get update`"):
        download("voices", apt / "c")


def test_no_apt_is_one_line_with_the_remedy(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path)}
    code = "from wedefense_nb.use.cli import main; main()"
    command = [sys.executable, "-c", code, "download", "voices", str(tmp_path / "c")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert "no apt-cache on this machine" in lines[0] and "--root FOLDER" in lines[0]


def test_packages_that_were_carried_here(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # apt is not asked
    table = download("voices", tmp_path / "c", root=packages)
    assert set(table.checksum) == {"not known"} and len(table) == len(prompts())
    assert capsys.readouterr().err.count("its SHA-256 is") == len(table)
    one = deb(tmp_path / "d" / f"{RU}_{PACKAGES[RU].version}_all.deb", prompts()[RU])
    with pytest.raises(CorpusError, match="not the package of Debian 12"):
        download("voices", tmp_path / "e", root=tmp_path / "d")
    sha256 = hashlib.sha256(one.read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGES, RU, PACKAGES[RU]._replace(sha256=sha256))
    assert download("voices", tmp_path / "e", root=tmp_path / "d").checksum.tolist() == ["agrees"]
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match="none of the packages is here"):
        download("voices", tmp_path / "f", root=tmp_path / "none")
    with pytest.raises(CorpusError, match="no package contains 'xx'"):
        download("voices", tmp_path / "f", only="xx", root=packages)
    with pytest.raises(CorpusError, match="has no mirror"):
        download("voices", tmp_path / "f", mirror="https://example.org")
    with pytest.raises(CorpusError, match="musan: root is for voices"):
        download("musan", tmp_path / "f", root=packages)
    assert list(FETCHERS) == ["voices"] and not set(FETCHERS) & set(downloads.ARCHIVES)


def test_epochs_in_names_of_packages(tmp_path):
    name = "asterisk-prompt-it-menardi-wav"
    path = deb(tmp_path / f"{name}_1%3a1.4.22+mm20110907-3.1_all.deb", {})
    assert module._version(path) == PACKAGES[name].version == "1:1.4.22+mm20110907-3.1"


def test_the_right_file_is_not_fetched_again(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = packages / f"{RU}_9.9-1_all.deb"
    assert fetch_package(RU, hashlib.sha256(path.read_bytes()).hexdigest(), packages) == path
    with pytest.raises(CorpusError, match="no apt-get"):
        fetch_package(RU, "0" * 64, packages)
    assert path.is_file(), "what is there is kept until the right one has come"


def test_who_speaks(corpus):
    manifest, report = survey("voices", corpus)
    u = manifest.utterances.set_index("utt")
    assert sorted(u.index) == [
        "fish_cs_m-cs-cellar-pra-m-kniha",
        "fish_cs_v-cs-cellar-pra-v-kniha",
        "ivrvoice-ru-digits-1",
        "ivrvoice-ru-vm-hello",
        "july-es-vm-hola",
        "stamps_bg-bg-animals-cow_desc_bg",
    ]
    one = u.loc["ivrvoice-ru-vm-hello"]
    assert (one.speaker, one.language, one.split, one.codec) == ("ivrvoice", "ru", "eval", "g722")
    assert (one.package, one.licence, one.label, one.attack) == (RU, "CC BY 3.0", "bonafide", "")
    assert one.duration == pytest.approx(0.4) and u.sample_rate["july-es-vm-hola"] == 8000
    assert u.codec["july-es-vm-hola"] == "gsm" and u.codec["stamps_bg-bg-animals-cow_desc_bg"] == "vorbis"
    assert set(report.problem) == {"missing"} and len(report) == len(VOICES) - 5
    assert report.detail.str.contains("package").all()


def test_installed_packages_are_read_from_usr(corpus, tmp_path):
    for place in corpus.glob("*/usr"):
        subprocess.run(["cp", "-r", str(place), str(tmp_path)], check=True)
    here = survey("voices", tmp_path / "usr")[0].utterances
    there = survey("voices", corpus)[0].utterances
    assert here.utt.tolist() == there.utt.tolist() and here.path.str.startswith("share/").all()
    with pytest.raises(CorpusError, match="not the root of voices"):
        survey("voices", tmp_path)


def test_every_language_lies_in_one_split():  # pitfall 40
    table = pd.DataFrame(VOICES)
    assert (table.groupby("language").split.nunique() == 1).all()
    assert (table.groupby("speaker").split.nunique() == 1).all() and table.speaker.nunique() == 19
    assert table.groupby("split").speaker.nunique().to_dict() == {"dev": 4, "eval": 7, "train": 8}
    fish = table[table.speaker.str.startswith("fish")]
    assert fish.split.nunique() == 1, "both tell the same story"
    assert set(table.package) <= set(PACKAGES) and not table.duplicated(["speaker", "language"]).any()
    assert set(table.codec) == {"g722", "gsm", "vorbis", "narrow"}


def test_cards_and_licences():
    assert CORPORA["voices"].noise == "voices_noise" and CORPORA["voices_noise"].task == "augmentation"
    assert PACKAGES["asterisk-moh-opsound-g722"].licence == "CC BY-SA 3.0"
    assert PACKAGES[RU].licence == PACKAGES["asterisk-core-sounds-it-g722"].licence == "CC BY 3.0"
    assert all(len(package.sha256) == 64 and int(package.sha256, 16) for package in PACKAGES.values())
    assert len({package.sha256 for package in PACKAGES.values()}) == len(PACKAGES) == 13


def test_noise_and_music_for_policies(corpus, tmp_path):
    table = noise_table("voices", corpus).set_index("id")
    assert table.kind.to_dict() == {
        "music-song": "music",
        "music-rybky01": "music",
        "noise-cellar-en-splash": "noise",
    }
    with pytest.raises(CorpusError, match="in_the_wild: brings no noise"):
        noise_table("in_the_wild", corpus)
    done = quick("prepare", "voices", corpus, tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert "3 sounds to mix in" in done.stdout
    found = noise_sources(Manifest.read(tmp_path / "m"))
    assert found.kind.value_counts().to_dict() == {"speech": 6, "music": 2, "noise": 1}
