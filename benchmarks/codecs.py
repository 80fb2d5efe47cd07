"""Codec round trips on one core, in multiples of real time: `python benchmarks/codecs.py`.

32 recordings of 4 s from data_samples, one thread. The baseline is torchaudio's resampling to 8 kHz and back,
the least that a telephone costs. Encoding, decoding, resampling and the removal of the delay are included; the
delay itself is measured once a process and not counted. Best of three.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
from timing import best
from torchaudio.functional import resample

from wedefense_nb.augmentation.codecs import CODECS, Codec, codecs
from wedefense_nb.augmentation.telephone import PacketLoss, Telephone
from wedefense_nb.data.audio import load
from wedefense_nb.data.batches import collate
from wedefense_nb.data.crops import Item
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.files import locate

SECONDS, N = 4.0, 32


def recordings() -> list[np.ndarray]:
    """Real sentences, joined until they fill 32 times four seconds."""
    size = int(16000 * SECONDS)
    joined = np.concatenate([load(path)[0] for path in Manifest.read(locate("data_samples")).paths()[:120]])
    return [joined[i * size : (i + 1) * size] for i in range(N)]


def main() -> None:
    torch.set_num_threads(1)
    batch = collate([Item(f"u{i}", wave, 1) for i, wave in enumerate(recordings())])
    calls = {
        "torchaudio resample 16-8-16 kHz (baseline)": lambda: resample(
            resample(batch.wave, 16000, 8000), 8000, 16000
        )
    }
    here = [name for name, available in codecs().available.items() if available]
    for name in here:
        rates = CODECS[name].bitrates
        for rate in sorted({rates[0], rates[len(rates) // 2], rates[-1]}):
            calls[f"{name}, {rate} kbit/s"] = partial(Codec(name, rate), batch)
    calls["Codec, any of them"] = partial(Codec(here), batch)
    calls |= {"Telephone": partial(Telephone(), batch), "PacketLoss": partial(PacketLoss(), batch)}
    table = pd.DataFrame({"ms an utterance": {k: 1e3 * best(f) / N for k, f in calls.items()}})
    table["times real time"] = 1e3 * SECONDS / table.iloc[:, 0]
    table["of the baseline's time"] = table.iloc[:, 0] / table.iloc[0, 0]
    print(table.round({"ms an utterance": 2, "times real time": 0, "of the baseline's time": 1}).to_string())


if __name__ == "__main__":
    main()
