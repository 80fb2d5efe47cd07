"""Does every parameter file run from its first cell to its last? `python tools/smoke_params.py [WORD ...]`.

Each file of params/ whose path has one of the words is executed headlessly, as its command would do it; without
words all but those of the embedded corpus. Small are: the upstream, of random weights in place of the published
one; the corpus, three dozen recordings of data_samples; the training, a step or two; fixed lengths, a second.
Recipe, model and its options, stages, schedule, policy and how crops are made are what the file says. A table of
what ran comes out, and a last line with the count. Files that differ by nothing but what was made small run once.
Ten seconds of a core each; the exit code is 1 if any failed.
"""

import argparse
import json
import re
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from wedefense_nb.data.manifest import Manifest
from wedefense_nb.features.pretrained import TINY
from wedefense_nb.files import locate
from wedefense_nb.training.recipes import find_recipe, merge_parameters, recipe_parameters, run_recipe

ROOT = Path(__file__).parent.parent
# As wide as the six resolutions of gMLP need; lists, as in YAML
SMALL = json.loads(json.dumps(asdict(replace(TINY, dim=256))))
FEW = {"batch_size": 4, "workers": 0, "precision": "no", "average": 1, "patience": None}


def recipe_of(file: Path) -> str:
    """The recipe that the comment of a parameter file names."""
    said = re.search(r"wedefense-nb run (\w+) -f params/", file.read_text(encoding="utf-8"))
    return said[1] if said else "detection"


def parameters_of(file: Path) -> dict:
    """What a parameter file sets, checked against its recipe; an unknown name is a ValueError."""
    return merge_parameters(find_recipe(recipe_of(file)), file, [])


def small_corpus(folder: Path, each: int = 4) -> Path:
    """A manifest folder with a few recordings of each split, class and kind of data_samples."""
    whole = Manifest.read(locate("data_samples"))
    table = whole.utterances
    table = table[table.kind != "spliced"]
    kinds = table.groupby(["split", "kind", "label"], sort=False)
    few = pd.concat([rows.sort_values("duration").head(each) for _, rows in kinds])
    chosen = whole.subset(utt=list(few.utt))
    chosen.utterances["path"] = [str(Path(path).resolve()) for path in chosen.paths()]
    return chosen.write(folder)


def smaller(file: Path, values: dict, corpus: Path, out: Path) -> dict:
    """The values of a parameter file at smoke size."""
    recipe = recipe_of(file)
    known = recipe_parameters(find_recipe(recipe))
    values = values | {"out": str(out)}
    if recipe == "fusion":
        scores = [str(locate("data_samples/scores")) + f"/{name}" for name in ("lcnn", "resnet")]
        return values | {"systems": dict(zip(values["systems"], scores, strict=True)), "replicates": 20}
    values["data"] = str(corpus)
    if recipe == "explanation":
        return values | {"model": "", "recordings": 2, "shown": 1, "replicates": 20}
    training = values["training"] | FEW
    training |= {"epochs": 1, "steps": 2 if training.get("steps") else None, "noise": "data_samples/noise_rir.csv"}
    if training.get("crop") is not None:
        training["crop"] = min(training["crop"], 1.0)
    if training.get("windows") is not None:
        training["windows"] = 1.0
    if training.get("batch_seconds") is not None:
        training["batch_seconds"] = 12.0
    values["training"] = training
    if recipe == "pretraining":
        few = {"clusters": 4} if "clusters" in values.get("task_options", {}) else {}
        return values | {"size": "tiny", "encoder_options": {}, "task_options": values["task_options"] | few}
    if "upstream" in values["model_options"]:
        values["model_options"] = values["model_options"] | {"upstream": SMALL}
    if "samples" in values["model_options"]:
        values["model_options"] = values["model_options"] | {"samples": 16_000}
    stages = []
    for stage in values.get("stages", []):
        top = ["top 1" if part.startswith("top ") else part for part in stage.get("learn", [])]
        few = {name: value for name, value in FEW.items() if name in stage}
        stages.append(stage | few | {"learn": top, "epochs": 1, "steps": 2})
    if stages:
        values["stages"] = stages
    values |= {"start": "", "replicates": 20, "final": True}
    for name, value in {"reference": 0, "refine": 1}.items():
        if name in known and values.get(name, known[name]["default"]):
            values[name] = value
    return values


def smoke(file: Path, corpus: Path, out: Path) -> Path:
    """Run a parameter file at smoke size; returns the run folder."""
    return run_recipe(recipe_of(file), smaller(file, parameters_of(file), corpus, out), stream=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="parts of paths")
    words = parser.parse_args().words
    others = ("data_samples", "profiles", "sweeps")
    files = [file for file in sorted((ROOT / "params").rglob("*/*.yaml")) if not set(others) & set(file.parts)]
    if words:
        files = [file for file in files if any(word in str(file.relative_to(ROOT)) for word in words)]
    verdicts: dict[str, tuple[str, str]] = {}  # by what is executed: a file of that form, and how it went
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        corpus = small_corpus(Path(place) / "corpus")
        for number, file in enumerate(files):
            begun = time.perf_counter()
            name = file.relative_to(ROOT / "params").as_posix()
            form = ""
            try:
                values = smaller(file, parameters_of(file), corpus, Path(place) / str(number))
                form = json.dumps([recipe_of(file), values | {"out": ""}], sort_keys=True)
                if form not in verdicts:
                    run_recipe(recipe_of(file), values, stream=False)
                    verdicts[form] = (name, "ok")
            except Exception as error:  # the table is to have all of them
                verdicts[form] = (name, f"FAILED: {' '.join(str(error).split())[:400]}")
            first, verdict = verdicts[form]
            if first != name:
                verdict += f", in this size the same as {first}"
            failed += verdict.startswith("FAILED")
            print(f"{name:62} {recipe_of(file):13} {time.perf_counter() - begun:6.1f} s  {verdict}", flush=True)
    print(f"{len(files) - failed} of {len(files)} ran; {len(verdicts)} differ in this size")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
