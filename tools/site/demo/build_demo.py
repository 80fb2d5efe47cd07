"""The demo that runs in the browser alone, as one static folder: `python tools/site/demo/build_demo.py --out OUT`.

The detector is a model folder (`--model`), or one that the recipe `detection` trains on `data_samples` first (some
minutes). onnxruntime-web comes from npm, in one pinned version whose hash is checked, and is kept in build/. The
folder works from any file server: `python -m http.server --directory OUT`.
"""

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from wedefense_nb.files import atomic
from wedefense_nb.use import report
from wedefense_nb.use.demo import examples
from wedefense_nb.use.export import Deployed, export_model
from wedefense_nb.use.predict import WORDS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
VERSION = "1.30.0"
INTEGRITY = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # sha512, of npm
)
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = ("index.html", "page.css", "page.js", "judge.js", "sound.js", "worker.js", "recorder.js")
TOY = (
    "The detector on this page is for learning only: it was trained on a few hundred synthetic recordings, in "
    "which concatenative voices play the real ones, and it has never heard a human being."
)


def unpack(archive: Path, into: Path) -> None:
    """The files of onnxruntime-web that are used, out of npm's archive; ValueError if it is not the pinned one."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise ValueError(f"{archive}: not onnxruntime-web {VERSION} as it was pinned (sha512 {found})")
    with tarfile.open(archive) as tar:
        for name in RUNTIME:
            member = tar.extractfile(f"package/dist/{name}")
            with atomic(into / name) as partial:
                partial.write_bytes(member.read())


def runtime(seconds: float = 300.0) -> Path:
    """A folder with onnxruntime-web: as it was unpacked before, or else fetched from npm.

    RuntimeError where npm is missing, fails, or takes longer than so many seconds.
    """
    folder = ROOT / "build" / f"onnxruntime-web-{VERSION}"
    if all((folder / name).is_file() for name in RUNTIME):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("onnxruntime-web is fetched by npm, which is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        words = [npm, "pack", "--silent", f"onnxruntime-web@{VERSION}"]
        try:
            done = subprocess.run(words, cwd=tmp, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"npm did not get onnxruntime-web within {seconds:g} s") from None
        archives = sorted(Path(tmp).glob("*.tgz"))
        if done.returncode or not archives:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(f"npm could not get onnxruntime-web {VERSION}: {lines[0]}")
        unpack(archives[0], folder)
    return folder


def settings(model: Path, note: str, card: str, wasm_bytes: int) -> dict:
    """What the page's script is told: the positions of its sliders and the words are those of reports."""
    words = [[limit if limit < float("inf") else None, text] for limit, text in WORDS]
    return {
        "words": words,
        "priors": report.PRIOR_STEPS,
        "costs": report.COST_STEPS,
        "note": note,
        "card": card,
        "model_bytes": model.stat().st_size,
        "runtime_bytes": wasm_bytes,
        "runtime_version": VERSION,
    }


def page(folder: Path, out: Path, note: str) -> None:
    """All but onnxruntime-web; ValueError for a model that is no calibrated detector."""
    out.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, out / name)
    (out / "look.css").write_text(report._STYLE, encoding="utf-8")
    model = export_model(folder, out / "model.onnx")
    if Deployed(model).about["task"] != "detection":
        raise ValueError(f"{folder}: a localizer; the page needs a detector")
    card = Path(folder) / "card.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    wasm = out / RUNTIME[1]
    facts = settings(model, note, text, wasm.stat().st_size if wasm.is_file() else 14_000_000)
    (out / "examples").mkdir(exist_ok=True)
    facts["examples"] = [[label, path.name] for label, path in examples().items()]
    for path in examples().values():
        shutil.copy(path, out / "examples")
    (out / "settings.json").write_text(json.dumps(facts), encoding="utf-8")


def build(folder: Path, out: Path, note: str = "") -> Path:
    """The whole page into a folder, from a model folder; gives the folder."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    vendored = runtime()
    for name in RUNTIME:
        shutil.copy(vendored / name, out / name)
    page(folder, out, note)
    return out


def train(folder: Path) -> Path:
    """A small detector of the recipe `detection`, trained on the embedded corpus; gives its model folder."""
    words = ["run", "detection", "-p", f"data={ROOT / 'data_samples'}", "-o", str(folder)]
    subprocess.run([sys.executable, "-c", "from wedefense_nb.use.cli import main; main()", *words], check=True)
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="Folder of a calibrated detector; without it a small one is trained."
    )
    parser.add_argument("--note", help="What visitors must know of the model, in a sentence.")
    parser.add_argument("--out", type=Path, help="The folder that is made.")
    parser.add_argument("--fetch", action="store_true", help="Only fetch onnxruntime-web, once.")
    chosen = parser.parse_args()
    if chosen.fetch:
        try:
            print(runtime())
        except RuntimeError as error:
            parser.exit(1, f"{error}\n")
        return
    if chosen.out is None:
        parser.error("say where the page shall lie: --out FOLDER")
    if chosen.out.exists() and any(chosen.out.iterdir()) and not (chosen.out / "settings.json").is_file():
        parser.error(f"{chosen.out} is not empty, and holds no earlier page")
    note = chosen.note if chosen.note is not None else ("" if chosen.model else TOY)
    model = chosen.model or train(ROOT / "build/demo-model")
    build(model, chosen.out, note)
    size = sum(path.stat().st_size for path in chosen.out.rglob("*") if path.is_file()) / 1e6
    print(f"{chosen.out}: {size:.0f} MB; look at it: python -m http.server --directory {chosen.out}")


if __name__ == "__main__":
    main()
