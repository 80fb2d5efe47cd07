"""Headers are not believed: damaged recordings are decoded or refused, in bounded memory and time, quietly."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data.fuzz import DAMAGE, WAYS, files, with_soundfile

CAPPED = """
import sys
from tests.data.fuzz import cap_memory
from wedefense_nb.data.audio import AudioError, info, load
cap_memory()
for path in sys.argv[1:]:
    for read in (info, load):
        try:
            read(path)
            print("decoded")
        except AudioError as error:
            print("AudioError" if path in str(error) else f"no name: {error}")
"""


def run(*args: str):
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_damaged_recordings_are_decoded_or_refused():
    done = run("-m", "tests.data.fuzz", "8", "18")
    found = json.loads(done.stdout)
    assert found["other"] == [] and found["slow"] == [] and set(found["counts"]) == {"decoded", "AudioError"}
    assert sum(found["counts"].values()) == 8 * len(files()) * len(DAMAGE) * len(WAYS)
    assert min(found["counts"].values()) > 400  # the damage is neither harmless nor hopeless
    assert done.stderr == ""  # libraries that print to it do so for every file of a corpus


def enormous_wav(tmp_path):
    """Four gigabytes are promised, recorded at one sample a second: at 16 kHz they grow 16,000 times."""
    data = bytearray(with_soundfile("WAV", "DOUBLE", 0.1 * np.ones(600)))
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFF0)
    data[data.index(b"fmt ") + 12 : data.index(b"fmt ") + 16] = struct.pack("<I", 1)  # at one sample a second
    return data


def enormous_mp3(tmp_path):
    """A Xing header that promises four billion frames."""
    data = bytearray(with_soundfile("MP3", "MPEG_LAYER_III", 0.1 * np.random.default_rng(0).normal(size=16000)))
    mark = data.find(b"Xing") if b"Xing" in data else data.find(b"Info")
    data[mark + 8 : mark + 12] = struct.pack(">I", 0xFFFFFFF0)
    return data


def enormous_caf(tmp_path):
    """A data chunk that is said to hold an exabyte, in a file of one sample a packet."""
    data = bytearray(with_soundfile("CAF", "PCM_16", 0.1 * np.ones(600)))
    at = data.index(b"data")
    data[at + 4 : at + 12] = struct.pack(">q", 2**60)
    return data


def enormous_flac(tmp_path):
    """STREAMINFO with 2^36 - 1 samples."""
    data = bytearray(with_soundfile("FLAC", "PCM_16", 0.1 * np.random.default_rng(0).normal(size=16000)))
    data[21] |= 0x0F
    data[22:26] = b"\xff\xff\xff\xff"
    return data


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is capped by what Linux offers")
@pytest.mark.parametrize("make", [enormous_wav, enormous_mp3, enormous_caf, enormous_flac])
def test_what_is_allocated_is_bounded_by_the_file(make, tmp_path):
    name = make.__name__.removeprefix("enormous_")
    path = tmp_path / f"promises.{name}"
    path.write_bytes(make(tmp_path))
    assert os.path.getsize(path) < 50_000
    outcomes = run("-c", CAPPED, str(path)).stdout.split("\n")[:-1]
    assert len(outcomes) == 2 and set(outcomes) <= {"decoded", "AudioError"}, outcomes
