"""Measure sounds that are no speech, once for all references: `python tools/make_sounds.py`.

Writes `data_samples/sounds.safetensors`: facts and textures (N, 88) of sounds of `augmentation.sounds`, as 16-bit
numbers. The same seed gives the same file; run it again when the facts, the textures or the families change.
"""

from pathlib import Path

import numpy as np
import torch

from wedefense_nb.augmentation.sounds import other_sound
from wedefense_nb.models.detector import save_weights
from wedefense_nb.understanding.quality import Meter

OUT = Path(__file__).parent.parent / "data_samples" / "sounds.safetensors"
SEED = 20261129
NUMBER = 2000


def row(i: int) -> np.ndarray:
    """Facts and texture (88,) of the i-th sound, of a quarter of a second to five seconds."""
    rng = np.random.default_rng([SEED, i])
    meter = Meter()
    meter.add(other_sound(rng, 0.25 * 20 ** rng.random()))
    return np.concatenate([list(meter.sound().values()), meter.texture()])


def main() -> None:
    table = torch.from_numpy(np.stack([row(i) for i in range(NUMBER)])).half()
    save_weights({"sounds": table}, OUT)
    print(f"{OUT.name}: {NUMBER} sounds, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
