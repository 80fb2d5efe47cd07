"""Self-supervised encoders: ours against s3prl's on the same weights: `python benchmarks/upstreams.py [cpu|cuda]
[base large]`.

Networks of the real sizes with random weights (needs `pip install 'wedefense_nb[ssl]'`). 4 s recordings: on a
CPU one with one thread and four with all of them, on a GPU 1 and 32. Forward only and forward with backward;
also bfloat16. Best of two; `agree` is the largest difference of the last state in float32, relative to its
standard deviation.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from timing import best

from wedefense_nb.features.upstreams import Upstream

SIZES: dict[str, dict] = {
    "base": {"quantize_targets": True},
    "large": {
        "quantize_targets": True, "extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True,
        "encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "final_dim": 768, "dropout": 0.0, "attention_dropout": 0.0,
    },
}  # fmt: skip


def write(size: str, folder: Path) -> Path:
    """A wav2vec 2.0 file of the real size with random weights."""
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    model = Wav2Vec2Model(Wav2Vec2Config(**SIZES[size]))
    state = {
        "task_cfg": {"normalize": size == "large"},
        "model_cfg": SIZES[size],
        "model_weight": model.state_dict(),
    }
    torch.save(state, folder / f"{size}.pt")
    return folder / f"{size}.pt"


def calls(upstream: Upstream, wave, lengths) -> dict:
    """What is timed."""

    def forward():
        with torch.no_grad():
            upstream.eval()(wave, lengths)

    def backward():
        upstream.train()(wave, lengths)[0].square().mean().backward()
        upstream.zero_grad(set_to_none=True)

    return {"forward": forward, "forward and backward": backward}


def compare(path: Path, device: str, batches) -> list[dict]:
    """Rows of the table for one file."""
    rows = []
    known = {}
    kinds: dict[str, dict] = {"s3prl": {"backend": "s3prl"}, "fast": {}, "fast bf16": {"bf16": True}}
    for kind, options in kinds.items():
        upstream = Upstream(path, frozen=False, **options).to(device)
        torch.manual_seed(1)
        for batch in batches:
            wave = 0.1 * torch.randn(batch, 64000, device=device)
            lengths = torch.full((batch,), 64000, device=device)
            with torch.no_grad():
                known[kind, batch] = upstream.eval()(wave[:1], lengths[:1])[0]
            for what, call in calls(upstream, wave, lengths).items():
                rows.append({"what": what, "batch": batch, "encoder": kind, "s": best(call, 2, device=device)})
    last = {kind: known[kind, batches[0]] for kind in kinds}
    apart = {kind: float((state - last["s3prl"]).abs().max() / state.std()) for kind, state in last.items()}
    return [row | {"agree": apart[row["encoder"]]} for row in rows]


def main() -> None:
    warnings.simplefilter("ignore", FutureWarning)
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    sizes = sys.argv[2:] or list(SIZES)
    everything = torch.get_num_threads()
    for threads in sorted({1, everything}) if device == "cpu" else [everything]:
        torch.set_num_threads(threads)
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for size in sizes:
                batches = [1, 32] if device != "cpu" else [1] if threads == 1 else [4]
                found = compare(write(size, Path(folder)), device, batches)
                rows += [{"size": size} | row for row in found]
        table = pd.DataFrame(rows)
        key = ["size", "what", "batch"]
        base = table[table.encoder == "s3prl"].set_index(key).s
        table["times faster"] = base.reindex(pd.MultiIndex.from_frame(table[key])).to_numpy() / table.s
        place = f"{threads} threads" if device == "cpu" else torch.cuda.get_device_name()
        print(
            f"{device}, {place}; baseline: s3prl\n{table.set_index(key).sort_index().round(5).to_string()}",
            flush=True,
        )


if __name__ == "__main__":
    main()
