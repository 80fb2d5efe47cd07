"""Whole detectors as files: the same numbers in every format, in Python and in C++."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from tests.conftest import ROOT
from tests.localization.test_promises import SMALL as SMALL_LOCALIZERS
from tests.localization.test_promises import options as localizer_options
from tests.models.test_promises import SMALL
from wedefense_nb.localization.localizers import Localizer
from wedefense_nb.models.cnn import LCNN
from wedefense_nb.models.detector import DETECTORS, LOCALIZERS, build, save_model
from wedefense_nb.scores.calibration import AffineCalibration, PAVCalibration, save_calibration
from wedefense_nb.use import export
from wedefense_nb.use.export import (
    Deployable,
    Deployed,
    Stream,
    deployable,
    export_model,
    fourier_matrix,
    parity,
    program,
    quantise,
    rewritten,
    write,
)
from wedefense_nb.use.predict import Evidence, Predictor

EVIDENCE = Evidence(1.0, 0.6, 0.4, a=3.0, b=0.5, drawn=np.zeros((0, 3)))


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = save_model(build("lcnn_lstm", feature="pulse_coherence"), tmp_path_factory.mktemp("model"))
    save_calibration(AffineCalibration().fit([-1.0, -0.5, 0.0, 0.5], [0, 1, 0, 1]), folder / "calibration.json")
    EVIDENCE.save(folder)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    """The same detector in all formats; the graph of the two that share one is made once."""
    part, about = deployable(folder)
    made = program(part)
    paths = [write(part, about, folder / name, made=made) for name in ("model.pt", "model.pt2")]
    return dict(
        zip(("torchscript", "pt2", "onnx"), [*paths, export_model(folder, folder / "model.onnx")], strict=True)
    )


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """WAV files of several lengths and forms, by name."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, size in (("short", 6000), ("one", 16000), ("long", 41000)):
        wave = noise(size)
        sf.write(folder / f"{name}.wav", wave, 16000, subtype="PCM_16")
        sf.write(folder / f"{name}_24.wav", wave, 16000, subtype="PCM_24")
        sf.write(folder / f"{name}_float.wav", np.stack([wave, -0.5 * wave], 1), 16000, subtype="FLOAT")
    return folder


def heard(path):
    return sf.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)


# What is rewritten


@pytest.mark.parametrize(("n_fft", "size"), [(8, 8), (512, 400), (7, 5), (1024, 320)])
def test_a_matrix_is_the_fourier_transform(n_fft, size):
    frames = torch.from_numpy(noise(3, size))
    want = torch.fft.rfft(frames, n_fft)
    got = frames @ fourier_matrix(n_fft, size)
    assert torch.allclose(got, torch.cat([want.real, want.imag], -1), atol=1e-5)
    power = want.abs().square()
    assert torch.allclose(power @ export._inverse_matrix(n_fft), torch.fft.irfft(power, n_fft), atol=1e-4)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
def test_rows_need_no_packing(kind):
    torch.manual_seed(0)
    rnn = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True).eval()
    x, frames = torch.randn(3, 7, 3), torch.tensor([7, 1, 4])
    with torch.no_grad():
        got, states = export.recurrent(rnn, x, frames)
        for row, n in enumerate(frames.tolist()):
            want, last = rnn(x[row : row + 1, :n])
            last = last[0] if isinstance(last, tuple) else last
            assert torch.allclose(got[row, :n], want[0], atol=1e-6)
            assert torch.allclose(states[:, row], last[:, 0], atol=1e-6)


CHEAP = ["bands", "lcnn_lstm", "xvector", "ssl_linear", "frame_linear", "frame_gmlp", "trace"]


@pytest.mark.parametrize("name", CHEAP)
def test_a_model_says_the_same_without_looking_at_values(name):
    torch.manual_seed(0)
    options = SMALL.get(name, {}) if name in DETECTORS else localizer_options(name)
    part = Deployable(build(name, **options).eval())
    batch = torch.from_numpy(noise(2, 20000)), torch.tensor([20000, 9000])
    with torch.no_grad():
        want = part(*batch)
        with rewritten(real=True), export._split_buffers(part):
            got = part(*batch)
    frames = want[0].shape[1:]
    scale = max(1.0, float(want[0].abs().max()))
    assert float((got[0][(slice(None), *map(slice, frames))] - want[0]).abs().max()) <= 1e-4 * scale
    assert torch.allclose(part(*batch)[0], want[0], atol=1e-5 * scale)  # and nothing of it stays


def test_nothing_stays_rewritten_after_an_error():
    from wedefense_nb.features import cepstra

    before = LCNN.forward.__globals__["pack_padded_sequence"], torch.nn.LSTM.forward
    with pytest.raises(ZeroDivisionError), rewritten():
        raise ZeroDivisionError
    assert (LCNN.forward.__globals__["pack_padded_sequence"], torch.nn.LSTM.forward) == before
    assert "int" not in vars(cepstra)


# What is in the file


@pytest.mark.parametrize("name", ["torchscript", "pt2", "onnx"])
def test_a_file_says_what_the_model_says_at_any_length_and_batch(name, folder, files):
    part, _ = deployable(folder)
    model = Deployed(files[name])
    for sizes in ([20000], [8000, 8001], [31234, 9000, 500]):
        wave = noise(len(sizes), max(sizes)) * (np.arange(max(sizes)) < np.array(sizes)[:, None])
        with torch.no_grad():
            padded = np.pad(wave, ((0, 0), (0, max(0, 8000 - max(sizes)))))
            want = part(torch.from_numpy(padded), torch.tensor(sizes))
        got = model(wave, sizes)
        assert list(got) == ["llr", "score"]
        for a, b in zip(got.values(), want, strict=True):
            assert np.abs(a - b.numpy()).max() <= 1e-4


def test_the_llr_is_that_of_the_evidence(folder, files):
    model = Deployed(files["torchscript"])
    for size in (5000, 16000, 30000):
        out = model(noise(1, size))
        assert out["llr"][0] == pytest.approx(EVIDENCE.llr(float(out["score"][0]), size / 16000)[0], abs=1e-5)


def test_a_file_and_the_predictor_agree(folder, files, sounds):
    predictor = Predictor.from_folder(folder)
    for path in sorted(sounds.glob("*.wav")):
        judged = predictor.detect(path)
        if all(row["counted"] for row in judged.windows):
            assert Deployed(files["torchscript"]).detect(heard(path)) == pytest.approx(judged.llr, abs=1e-4)


@pytest.mark.parametrize("name", ["torchscript", "pt2", "onnx"])
def test_metadata_say_what_the_numbers_mean(name, files):
    about = Deployed(files[name]).about
    assert about["sample_rate"] == "16000" and about["labels"] == "spoof bonafide" and about["calibrated"] == "yes"
    assert about["name"] == "lcnn_lstm" and len(about["weights"]) == 16 and about["card_sha256"] == ""
    numbers = {key: float(about[key]) for key in ("window", "shortest", "rho", "a", "b")}
    assert numbers == {"window": 1.0, "shortest": 0.6, "rho": 0.4, "a": 3.0, "b": 0.5}
    assert "positive speaks for bona fide" in about["convention"]


def test_a_model_without_calibration_is_refused_unless_scores_are_wanted(tmp_path):
    folder = save_model(build("bands"), tmp_path / "model")
    with pytest.raises(ValueError, match="not calibrated, so its scores are no LLRs"):
        export_model(folder, tmp_path / "bands.pt")
    assert not (tmp_path / "bands.pt").exists()
    model = Deployed(export_model(folder, tmp_path / "bands.pt", raw=True))
    assert list(model(noise(1, 9000))) == ["score"] and model.about["calibrated"] == "no"
    with pytest.raises(ValueError, match="no calibration of windows"):
        model.detect(noise(9000))
    save_calibration(PAVCalibration().fit([0.0, 1.0, 2.0], [0, 1, 1]), folder / "calibration.json")
    with pytest.raises(ValueError, match="is no line"):
        deployable(folder)
    (folder / "card.md").write_text("# what it is")
    assert len(deployable(folder, raw=True)[1]["card_sha256"]) == 64


def test_a_localizer_gives_llrs_of_frames(tmp_path):
    torch.manual_seed(0)
    folder = save_model(build("frame_linear", **SMALL_LOCALIZERS["frame_linear"]), tmp_path / "model")
    line = AffineCalibration().fit([-1.0, -0.5, 0.0, 0.5], [0, 1, 0, 1])
    save_calibration(line, folder / "calibration.json")
    part, about = deployable(folder)
    assert isinstance(part.model, Localizer) and about["step"] == "160" and about["task"] == "localization"
    model = Deployed(write(part, about, tmp_path / "frames.pt"))
    got = model(noise(2, 20000), [20000, 12000])
    with torch.no_grad():
        logits, frames = part.model(torch.from_numpy(noise(2, 20000)), torch.tensor([20000, 12000]))
    want = line.transform(part.model.score(logits).numpy())
    assert got["frames"].tolist() == frames.tolist()
    for row, n in enumerate(frames.tolist()):
        assert np.abs(got["llr"][row, :n] - want[row, :n]).max() < 1e-4 and (got["llr"][row, n:] == 0).all()


def test_what_is_no_such_file_or_wave_is_refused(tmp_path, files):
    with pytest.raises(ValueError, match=r"\.tflite"):
        Deployed(tmp_path / "x.tflite")
    with export._quiet():  # torch calls TorchScript old
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no metadata of ours"):
        Deployed(tmp_path / "other.pt")
    model = Deployed(files["torchscript"])
    for wave, lengths in (
        (noise(9000), None),
        (noise(1, 0), None),
        (noise(1, 9000), [9001]),
        (noise(1, 9000), [0]),
    ):
        with pytest.raises(ValueError, match="need"):
            model(wave, lengths)


def test_parity_gives_a_reason_where_there_is_no_file():
    table = parity(Deployable(build("bands", n_mels=24).eval()), ("torchscript",))
    assert table.difference[0] <= 1e-6 and table.reason[0] == "" and table.kilobytes[0] > 0
    windows = build("sliding_window", detector="bands", detector_options={"n_mels": 24}).eval()
    table = parity(Deployable(windows), ("pt2",))
    assert np.isnan(table.difference[0]) and table.reason[0]
    assert export._first_line(NotImplementedError("x\n - No ONNX function for y")) == "No ONNX function for y"


def test_what_a_format_cannot_hold_is_refused_with_a_reason(tmp_path):
    assert set(export.REASONS) <= {*DETECTORS, *LOCALIZERS}
    model = build("rawnet2", **SMALL["rawnet2"]).eval()
    for suffix in ("pt", "pt2", "onnx"):
        with pytest.raises(ValueError, match="rawnet2 cannot be written as .*one length"):
            write(Deployable(model), {}, tmp_path / f"x.{suffix}")
    table = parity(Deployable(model), ("pt2",))  # and truly so
    assert np.isnan(table.difference[0]) and "samples" in table.reason[0]
    gates = Deployable(build("frame_gmlp", **localizer_options("frame_gmlp")).eval())
    table = parity(gates, ("torchscript",))
    assert table.difference[0] <= 1e-4


# Eight bits, and streams


def test_eight_bits_change_scores_little(files, tmp_path):
    small = quantise(files["onnx"], tmp_path / "small.onnx")
    assert small.stat().st_size < 0.6 * files["onnx"].stat().st_size
    wave = noise(2, 20000)
    exact, rough = (Deployed(path)(wave)["score"] for path in (files["onnx"], small))
    assert 0 < np.abs(exact - rough).max() < 0.01


@pytest.mark.parametrize("size", [3000, 16000, 16001, 50123])
@pytest.mark.parametrize("known", [True, False])
def test_a_stream_says_what_is_said_offline(files, size, known):
    model = Deployed(files["torchscript"])
    wave = noise(size)
    stream = Stream(model, size if known else None)
    most = 0
    for at in range(0, size, 777):
        stream.push(wave[at : at + 777])
        most = max(most, len(stream._held))
    got = stream.finish()
    assert most <= 16000 and stream.latency == 0.5
    if known:
        assert got == pytest.approx(model.detect(wave), abs=1e-5)
    starts = [round(start * 16000) for start, _, _ in stream.windows]
    if not known:  # the same rule, written plainly
        want = list(range(0, max(1, size - 16000 + 1), 8000)) if size >= 16000 else [0]
        if size > 16000 and want[-1] + 16000 < size:
            want.append(size - 16000)
        assert starts == want
        scores = [float(model(wave[None, s : s + 16000])["score"][0]) for s in want]
        assert got == pytest.approx(model.llr(float(np.mean(scores)), size), abs=1e-5)


def test_a_stream_refuses_nothing_and_another_length(files):
    model = Deployed(files["torchscript"])
    with pytest.raises(ValueError, match="heard 0 samples"):
        Stream(model).finish()
    stream = Stream(model, total=9000)
    stream.push(noise(8000))
    with pytest.raises(ValueError, match="announced were 9000"):
        stream.finish()


# C++


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder where both programs are built, once for all tests."""
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("cmake and g++ are not installed")
    build_folder = tmp_path_factory.mktemp("cpp")
    onnxruntime = pytest.importorskip("onnxruntime")
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    options += [f"-DONNXRUNTIME_LIBRARY={libraries[0]}"] if libraries else []
    for words in (["-S", ROOT / "deploy/cpp", "-B", build_folder, *options], ["--build", build_folder]):
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build_folder


@pytest.mark.parametrize(("name", "kind"), [("llr_torch", "torchscript"), ("llr_onnxruntime", "onnx")])
def test_a_program_in_cpp_prints_the_same_llr(name, kind, programs, files, sounds):
    if not (programs / name).exists():
        pytest.skip(f"{name}: its library is not installed")
    paths = sorted(sounds.glob("*.wav"))
    done = subprocess.run([programs / name, files[kind], *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = {line.split(" ", 1)[1]: float(line.split()[0]) for line in done.stdout.splitlines()}
    model = Deployed(files[kind])
    for path in paths:
        assert said[str(path)] == pytest.approx(model.detect(heard(path)), abs=1e-4)


def test_a_program_refuses_other_rates_files_and_models(programs, files, tmp_path):
    sf.write(tmp_path / "eight.wav", noise(8000), 8000)
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam, this is no recording")
    (tmp_path / "cut.wav").write_bytes(b"RIFF\x10\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01")
    for sound, said in (
        ("eight", "has 8000 Hz, need 16000"),
        ("letter", "no WAV file"),
        ("cut", "ends too early"),
    ):
        words = [programs / "llr_torch", files["torchscript"], tmp_path / f"{sound}.wav"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 1 and said in done.stderr and done.stdout == ""
    assert subprocess.run([programs / "llr_torch"], capture_output=True).returncode == 2


def test_metadata_are_json_beside_the_graph(files):
    extra = {"metadata.json": "", "window": ""}
    with export._quiet():
        torch.jit.load(files["torchscript"], _extra_files=extra)
    assert json.loads(extra["metadata.json"])["outputs"] == "llr score" and float(extra["window"]) == 1.0
