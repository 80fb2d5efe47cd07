"""Make the embedded corpus: `make samples`.

Needs the Debian packages espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts
festvox-italp16k festvox-itapc16k festvox-czech-dita festvox-czech-machac festvox-czech-krb festvox-czech-ph
festvox-suopuhe-lj festvox-suopuhe-mv festvox-ru festvox-hi-nsk, and `pip install -e '.[samples]'`.

Three steps: speak the sentences, let wedefense_nb.data.forge make the fakes while every sentence and its fakes go
through one simulated room and microphone, and write the manifest. The same seed and the same package versions
give the same files.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from joblib import Parallel, delayed
from scipy.signal import butter, sosfilt
from torchaudio.functional import add_noise, equalizer_biquad, fftconvolve

from wedefense_nb.data.audio import SAMPLE_RATE, load, resample, save
from wedefense_nb.data.forge import forge
from wedefense_nb.data.manifest import SEGMENTS, Manifest, utt_rng

HERE = Path(__file__).parent
SEED = 20261122
OUT = HERE.parent / "data_samples"

# Bona fide: concatenative voices (diphones or units cut from recordings): voice, language, split, sentences.
VOICES = [
    ("ked_diphone", "en", "train", 16), ("lp_diphone", "it", "train", 16), ("czech_machac", "cs", "train", 16),
    ("hy_fi_mv_diphone", "fi", "train", 16), ("hindi_NSK_diphone", "hi", "train", 16),
    ("suo_fi_lj_diphone", "fi", "train", 16),
    ("kal_diphone", "en", "dev", 18), ("czech_dita", "cs", "dev", 18),
    ("pc_diphone", "it", "eval", 10), ("czech_krb", "cs", "eval", 10), ("czech_ph", "cs", "eval", 10),
    ("msu_ru_nsh_clunits", "ru", "eval", 10),
]  # fmt: skip

# Other synthesizers, always fake: attack, voice, language, split, sentences.
SYNTHESIZERS = [
    *[("espeak", f"{lang}+m{i}", lang, "train", 6) for i, lang in enumerate(["en", "it", "cs", "fi", "hi"], 1)],
    ("flite_cg", "rms", "en", "train", 8), ("flite_cg", "awb", "en", "train", 7),
    ("espeak", "en+f1", "en", "dev", 4), ("espeak", "cs+f2", "cs", "dev", 4), ("flite_cg", "slt", "en", "dev", 4),
    *[("espeak", f"{lang}+f{i}", lang, "eval", 4) for i, lang in enumerate(["it", "en", "cs", "ru"], 1)],
    ("hts", "cmu_us_slt_arctic_hts", "en", "eval", 10),
]  # fmt: skip

SEEN = ["gl_mel", "lpc", "world"]  # vocoders of train, dev and eval
EVAL = [  # three of these are met for the first time in eval
    ["gl_mel", "lpc", "world", "world_vc"],
    ["lpc", "world", "world_coded", "world_vc"],
    ["gl_mel", "world", "world_coded", "gl_lin"],
]
ENCODING = {"cs": "iso-8859-2", "it": "latin1", "fi": "latin1"}


def speak(engine: str, voice: str, lang: str, text: str, path: Path) -> None:
    """One sentence, spoken by festival, espeak-ng or flite."""
    if engine == "espeak":
        subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", path, text], check=True)
    elif engine == "flite_cg":
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", path], check=True)
    else:
        text = text.encode(ENCODING.get(lang, "utf-8"))
        command = ["text2wave", "-eval", f"(voice_{voice})", "-o", str(path)]
        subprocess.run(command, input=text, check=True, stderr=subprocess.DEVNULL)


def trim(wave: np.ndarray, margin: float = 0.03, floor_db: float = -40.0) -> np.ndarray:
    """Cut silence at both ends: the rooms add their own."""
    power = np.convolve(wave.astype(np.float64) ** 2, np.ones(320) / 320, "same")
    loud = np.flatnonzero(power > power.max() * 10 ** (floor_db / 10))
    return wave[max(0, loud[0] - int(margin * SAMPLE_RATE)) : loud[-1] + int(margin * SAMPLE_RATE)]


def excerpt(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to two seconds of a sentence, cut where it is quiet, at a random tape speed: another voice."""
    wave = resample(wave, SAMPLE_RATE, round(SAMPLE_RATE * rng.uniform(0.9, 1.1) / 100) * 100)
    n = int(rng.uniform(1.0, 1.7) * SAMPLE_RATE)
    level = np.convolve(wave.astype(np.float64) ** 2, np.ones(800) / 800, "same")
    start = int(rng.integers(max(1, len(wave) - n)))
    start = max(0, start - 2400) + int(level[max(0, start - 2400) : start + 2400].argmin())
    end = min(start + n, len(wave))
    return wave[start : end - 4000 + int(level[end - 4000 : end].argmin())]


def record(engine, voice, lang, split, text, k, folder: Path, rooms: list) -> dict:
    """Speak, bring to 16 kHz, trim, and set a common level."""
    utt = f"{engine}-{voice.replace('+', '_')}-{k:02d}".replace("festival-", "")
    speak(engine, voice, lang, text, folder / f"{utt}.wav")
    rng = utt_rng(utt, SEED)
    wave = excerpt(trim(load(folder / f"{utt}.wav")[0]), rng)
    lead, tail = (rng.uniform(0.02, 0.2, 2) * SAMPLE_RATE).astype(int)
    tail = max(tail, SAMPLE_RATE - len(wave) - lead)  # at least one second
    wave = np.pad(wave / np.sqrt(np.mean(wave**2)) * 0.05, (lead, tail))
    wave = reverberate(wave.astype(np.float32), utt, rooms)
    save(folder / f"{utt}.flac", wave / max(1.0, np.abs(wave).max()))
    attack = "" if engine == "festival" else engine
    return {
        "utt": utt,
        "path": f"{utt}.flac",
        "label": "spoof" if attack else "bonafide",
        "split": split,
        "speaker": f"{engine}:{voice}" if attack else voice,
        "attack": attack,
        "codec": "",
        "duration": len(wave) / SAMPLE_RATE,
        "sample_rate": SAMPLE_RATE,
        "text": text,
        "language": lang,
    }


def record_all(folder: Path, halls: dict[str, list]) -> pd.DataFrame:
    sentences = yaml.safe_load((HERE / "sentences.yaml").read_text(encoding="utf-8"))
    jobs = [("festival", v, lang, split, n) for v, lang, split, n in VOICES] + SYNTHESIZERS
    jobs = [(*job[:4], text, k) for job in jobs for k, text in enumerate(pick(sentences[job[2]], job[1], job[4]))]
    return pd.DataFrame(Parallel(n_jobs=-1)(delayed(record)(*job, folder, halls[job[3]]) for job in jobs))


def pick(sentences: list, voice: str, n: int) -> list:
    rng = utt_rng(voice, SEED)
    order = np.concatenate([rng.permutation(len(sentences)) for _ in range(-(-n // len(sentences)))])
    return [sentences[i] for i in order[:n]]


def rooms(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Impulse responses of random shoebox rooms (image method); the direct sound is sample 0, energy 1."""
    import pyroomacoustics as pra

    responses = []
    for _ in range(n):
        size = rng.uniform([3, 3, 2.4], [9, 7, 3.5])
        absorption, order = pra.inverse_sabine(rng.uniform(0.15, 0.4), size)
        room = pra.ShoeBox(size, fs=SAMPLE_RATE, materials=pra.Material(absorption), max_order=min(order, 12))
        source = rng.uniform([0.5, 0.5, 1.0], size - [0.5, 0.5, 0.8])
        step = rng.uniform(-1, 1, 3) * [0.4, 0.4, 0.2]
        room.add_source(source)
        room.add_microphone(np.clip(source + step + 0.2 * np.sign(step), 0.3, size - 0.3))
        room.compute_rir()
        h = np.asarray(room.rir[0][0])
        h = h[np.abs(h).argmax() :][:6400] * np.linspace(1, 0, 6400)[: len(h[np.abs(h).argmax() :][:6400])] ** 0.5
        responses.append((h / np.sqrt((h**2).sum())).astype(np.float32))
    return responses


def coloured(n: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency as f ** -slope; standard deviation 1."""
    spectrum = np.fft.rfft(rng.normal(size=n + 4000))
    f = np.maximum(np.fft.rfftfreq(n + 4000, 1 / SAMPLE_RATE), 40.0)
    noise = np.fft.irfft(spectrum * f ** (-slope / 2))[2000 : 2000 + n]
    return (noise / noise.std()).astype(np.float32)


def noises(babble: list[np.ndarray], rng: np.random.Generator, n: int = 3 * SAMPLE_RATE) -> dict[str, np.ndarray]:
    """Synthetic noises for augmentation."""
    t = np.arange(n) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * t + rng.uniform(0, 6)) / k for k in range(1, 12))
    drops = sosfilt(
        butter(2, [1500, 6000], "bandpass", fs=SAMPLE_RATE, output="sos"), (rng.random(n) < 0.004) * 20.0
    )
    taps = sosfilt(butter(2, [800, 4000], "bandpass", fs=SAMPLE_RATE, output="sos"), (rng.random(n) < 5e-4) * 60.0)
    engine = np.sign(np.sin(2 * np.pi * (28 * t + 0.6 * np.sin(2 * t)))) * 0.6
    gusts = 0.3 + np.abs(np.convolve(rng.normal(size=n), np.ones(8000) / 90, "same"))
    fan = sum(np.sin(2 * np.pi * 117 * k * t) / k**1.5 for k in range(1, 6)) * 0.3
    talk = sum(np.resize(np.roll(w, int(rng.integers(n))), n) / w.std() for w in babble)
    out = {
        "white": coloured(n, 0, rng),
        "pink": coloured(n, 1, rng),
        "brown": coloured(n, 2, rng),
        "hum": hum + 0.1 * coloured(n, 1, rng),
        "rain": drops + 0.1 * coloured(n, 0, rng),
        "keyboard": taps + 0.02 * coloured(n, 1, rng),
        "wind": gusts * coloured(n, 2, rng),
        "engine": sosfilt(butter(2, 900, fs=SAMPLE_RATE, output="sos"), engine) + 0.2 * coloured(n, 1.5, rng),
        "fan": fan + 0.4 * coloured(n, 1, rng),
        "babble": talk,
    }
    return {name: (0.05 * x / np.std(x)).astype(np.float32) for name, x in out.items()}


def reverberate(wave: np.ndarray, source: str, rooms: list[np.ndarray]) -> np.ndarray:
    """The sentence as it sounds in one of the rooms, at the same length."""
    room = rooms[int(utt_rng(f"room of {source}", SEED).integers(len(rooms)))]
    return fftconvolve(torch.from_numpy(wave), torch.from_numpy(room))[: len(wave)].numpy()


def microphone(wave: np.ndarray, source: str) -> np.ndarray:
    """Equalisation, band limits, noise and level; every draw depends on the source alone: its fakes share them."""
    rng = utt_rng(f"microphone of {source}", SEED)
    x = torch.from_numpy(wave)
    for _ in range(2):
        f = np.exp(rng.uniform(np.log(150), np.log(6000)))
        gain = rng.uniform(-6, 6)
        q = rng.uniform(0.5, 1.5)
        x = equalizer_biquad(x, SAMPLE_RATE, f, gain, q)
    noise = torch.from_numpy(coloured(len(wave), rng.uniform(0.3, 1.8), rng))
    x = add_noise(x, noise, torch.tensor(rng.uniform(25, 40)))
    band = butter(2, [rng.uniform(60, 140), rng.uniform(6200, 7600)], "bandpass", fs=SAMPLE_RATE, output="sos")
    out = sosfilt(band, x.numpy())
    out *= 10 ** (rng.uniform(-40, -32) / 20) / out.std()
    return (np.tanh(4 * out) / 4).astype(np.float32)


def corpus(recorded: pd.DataFrame, folder: Path) -> Manifest:
    """The forge's work on the bona fide recordings, and the other synthesizers, all through the rooms."""
    bona = Manifest(recorded, root=folder).subset(label="bonafide")
    in_eval = bona.subset(split="eval").utterances.utt
    jobs = [(s, bona.subset(split=s), SEEN) for s in ("train", "dev")]
    jobs += [("eval", bona.subset(utt=in_eval[i::3].tolist()), vocoders) for i, vocoders in enumerate(EVAL)]
    parts = []
    for i, (_, source, vocoders) in enumerate(jobs):
        made = forge(source, folder / f"forged{i}", vocoders, 0.38, 0.1, SEED, channel=microphone)
        parts.append((made.utterances.assign(path=[str(x) for x in made.paths()]), made.segments))
    other = recorded[recorded.attack != ""].assign(kind="full", source=lambda u: u.utt, donor="")
    for r in other.itertuples():
        save(folder / "other" / r.path, microphone(load(folder / r.path)[0], r.utt))
    other["path"] = [str(folder / "other" / p) for p in other.path]
    text = recorded.set_index("utt")[["text", "language"]]
    u = pd.concat([*(p[0] for p in parts), other.drop(columns=text.columns)]).join(text, on="source")
    return Manifest(u, pd.concat([p[1] for p in parts]))


def publish(m: Manifest, rng: np.random.Generator) -> None:
    """Neutral names, the final columns, and the folder."""
    u = m.utterances.sort_values("utt").reset_index(drop=True)
    names = pd.Series([f"S{i:04d}" for i in rng.permutation(len(u))], index=u.utt)
    u = u.assign(utt=names[u.utt].to_numpy(), pair=u.source.map(names).where(u.source != u.utt, ""))
    (OUT / "audio").mkdir(parents=True)
    for r in u.itertuples():
        shutil.copyfile(r.path, OUT / "audio" / f"{r.utt}.flac")
    u["path"] = "audio/" + u.utt + ".flac"
    columns = [
        "utt",
        "path",
        "label",
        "split",
        "speaker",
        "attack",
        "codec",
        "duration",
        "sample_rate",
        "kind",
        "language",
        "text",
        "pair",
    ]
    s = m.segments.assign(utt=m.segments.utt.map(names)).sort_values(["utt", "start"])
    Manifest(u[columns].sort_values("utt"), s[list(SEGMENTS)]).write(OUT)


def write_augmentation(noise: dict[str, np.ndarray], responses: list[np.ndarray]) -> None:
    rows = []
    for name, wave in noise.items():
        save(OUT / "noise" / f"{name}.flac", np.clip(wave, -1, 1))
        rows.append(
            {"id": name, "path": f"noise/{name}.flac", "kind": "noise", "duration": len(wave) / SAMPLE_RATE}
        )
    for i, h in enumerate(responses):
        save(OUT / "rir" / f"room{i:02d}.flac", 0.9 * h / np.abs(h).max())
        rows.append(
            {
                "id": f"room{i:02d}",
                "path": f"rir/room{i:02d}.flac",
                "kind": "rir",
                "duration": len(h) / SAMPLE_RATE,
            }
        )
    pd.DataFrame(rows).to_csv(OUT / "noise_rir.csv", index=False)


def main() -> None:
    rng = np.random.default_rng(SEED)
    for part in ("audio", "noise", "rir"):
        shutil.rmtree(OUT / part, ignore_errors=True)
    with tempfile.TemporaryDirectory() as tmp:
        halls = {split: rooms(n, rng) for split, n in {"train": 8, "dev": 4, "eval": 5}.items()}
        recorded = record_all(Path(tmp), halls)
        publish(corpus(recorded, Path(tmp)), rng)
        talk = [load(Path(tmp) / p)[0] for p in recorded[recorded.split == "train"].path.iloc[::9]][:5]
        write_augmentation(noises(talk, rng), rooms(10, rng))


if __name__ == "__main__":
    main()
