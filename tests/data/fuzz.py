"""Damaged recordings against the reader, in a process of capped memory: `python -m tests.data.fuzz TRIES SEED`.

Prints, as JSON, how often each outcome was met (`decoded`, `AudioError`, others by name), what was other, and
what took more than `SLOW` seconds. `test_audio_fuzz.py` runs it; with more tries it can be run by hand.
"""

import collections
import io
import json
import sys
import time

import av
import numpy as np
import soundfile as sf

from wedefense_nb.data.audio import AudioError, Recording, info, resample

SLOW = 5.0  # seconds of this process for one file; none takes a tenth of that alone
ROOM = 2**30  # bytes beyond what the process has before the first file
DAMAGE = ("cut", "header", "flip", "insert", "remove", "random")


def with_soundfile(format: str, subtype: str, wave, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    sf.write(file, wave, rate, format=format, subtype=subtype)
    return file.getvalue()


def with_av(format: str, codec: str, wave, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64000
        samples = (wave * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        converter = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for part in converter.resample(frame) + converter.resample(None):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def files() -> dict[str, bytes]:
    """The same noise in fourteen formats."""
    wave = 0.1 * np.random.default_rng(0).normal(size=12000).astype(np.float32).clip(-3, 3)
    return {
        "wav": with_soundfile("WAV", "PCM_16", wave),
        "wav, float": with_soundfile("WAV", "FLOAT", wave, 44100),
        "w64": with_soundfile("W64", "PCM_16", wave),
        "flac": with_soundfile("FLAC", "PCM_16", wave),
        "ogg vorbis": with_soundfile("OGG", "VORBIS", wave),
        "mp3": with_soundfile("MP3", "MPEG_LAYER_III", wave),
        "aiff": with_soundfile("AIFF", "PCM_16", wave),
        "caf": with_soundfile("CAF", "PCM_16", wave),
        "caf, alac": with_soundfile("CAF", "ALAC_16", wave),
        "au": with_soundfile("AU", "ULAW", wave),
        "ogg opus": with_av("ogg", "libopus", wave, 48000),
        "m4a": with_av("ipod", "aac", wave, 16000),
        "wma": with_av("asf", "wmav2", wave, 44100),
        "webm": with_av("webm", "libopus", wave, 48000),
    }


def damaged(data: bytes, how: str, rng: np.random.Generator) -> bytes:
    """A copy with one kind of damage."""
    new = bytearray(data)
    size = len(new)
    at = int(rng.integers(size))
    if how == "cut":
        return bytes(new[: at + 1])
    if how == "header":
        for _ in range(rng.integers(1, 5)):
            new[rng.integers(min(size, 100))] = rng.integers(256)
    if how == "flip":
        for _ in range(rng.integers(1, 20)):
            new[rng.integers(size)] ^= 1 << int(rng.integers(8))
    if how == "insert":
        new[at:at] = rng.bytes(rng.integers(1, 300))
    if how == "remove":
        del new[at : at + int(rng.integers(1, 300))]
    if how == "random":
        return rng.bytes(rng.integers(1, 5000))
    return bytes(new)


def read_stretch(name: str, data: bytes) -> None:
    recording = Recording(name, data)
    start = recording.frames // 3
    recording.read(start, start + 1000)


WAYS = {
    "info": lambda name, data: info(name, data),
    "whole": lambda name, data: Recording(name, data).read(),
    "stretch": read_stretch,
}


def cap_memory() -> None:
    """From here on an allocation beyond `ROOM` fails, and so does the test."""
    import resource

    resample(np.zeros(100, np.float32), 8000)  # what libraries allocate once
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))


def fuzz(tries: int, seed: int) -> dict:
    """Each format with each damage, so many times, read in three ways."""
    rng = np.random.default_rng(seed)
    counts = collections.Counter()
    other = []
    slow = []
    for name, data in [*files().items()] * tries:
        for how in DAMAGE:
            bad = damaged(data, how, rng)
            start = time.process_time()
            for way, read in WAYS.items():
                try:
                    read(f"{name}, {how}", bad)
                    counts["decoded"] += 1
                except AudioError as error:
                    counts["AudioError"] += 1
                    if f"{name}, {how}" not in str(error):
                        other.append(f"{name}, {how}, {way}: the message names no file: {error}")
                except BaseException as error:  # noqa: BLE001  (whatever it is, it is a finding)
                    counts[type(error).__name__] += 1
                    other.append(f"{name}, {how}, {way}: {error!r}"[:200])
            if time.process_time() - start > SLOW:
                slow.append(f"{name}, {how}")
    return {"counts": counts, "other": other, "slow": slow}


if __name__ == "__main__":
    cap_memory()
    print(json.dumps(fuzz(int(sys.argv[1]), int(sys.argv[2]))))
