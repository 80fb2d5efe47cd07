"""Front ends against torchaudio's Kaldi fbank, utterance by utterance: `python benchmarks/features.py [cpu|cuda]`.

32 recordings of 4 s, one CPU thread. The baseline computes one recording at a time, as feature pipelines do;
ours take the batch. The bare FFT of the same frames is the limit that no front end can pass. Best of twenty
rounds; in a round each is called once, so that other load on the machine meets all of them.
"""

import sys
from functools import partial

import pandas as pd
import torch
from timing import seconds
from torchaudio.compliance.kaldi import fbank

from wedefense_nb.features.cepstra import LFCC, PRESETS
from wedefense_nb.features.spectra import Fbank


def best(calls: dict, device: str, rounds: int = 20) -> dict[str, float]:
    """Milliseconds of each call's fastest round."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, function in calls.items():
            times[name].append(seconds(function, device))
    return {name: 1e3 * min(values) for name, values in times.items()}


@torch.no_grad()
def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cpu = 0.1 * torch.randn(32, 64000)
    wave = cpu.to(device)
    lengths = torch.full((32,), 64000, device=device)
    options = {"num_mel_bins": 80, "window_type": "hamming", "dither": 0.0}
    frames = wave.unfold(1, 400, 160)
    calls = {
        "torchaudio kaldi.fbank, one by one on the CPU (baseline)": lambda: [
            fbank(w[None] * 32768, **options) for w in cpu
        ],
        "bare FFT of the frames": lambda: torch.fft.rfft(frames, 512),
    }
    ours: dict[str, torch.nn.Module] = {
        "Fbank": Fbank(),
        **{f"LFCC {name}": LFCC.preset(name) for name in PRESETS},
    }
    calls |= {name: partial(front.to(device), wave, lengths) for name, front in ours.items()}
    table = pd.DataFrame({"ms an utterance": pd.Series(best(calls, device)) / 32})
    table["times faster"] = table.iloc[0, 0] / table["ms an utterance"]
    print(f"{device}\n{table.round(2).to_string()}")


if __name__ == "__main__":
    main()
