"""What comes from npm while the site is built or checked: of a stated version, with a stated sum, and kept."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGES = {
    "katex": (
        "0.16.22",
        "sha512-XCHRdUw4lf3SKBaJe4EvgqIuWwkPSo9XoeO8GjQW94Bp7TWv9hNhzZjZ+OH9yf1UmLygb7DIT5GSFQiyt16zYg==",
    ),
    "axe-core": (
        "4.10.3",
        "sha512-Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg==",
    ),
}


def from_npm(name: str, work: Path) -> Path:
    """The unpacked package, from the work folder or from npm. OSError where it cannot be had."""
    version, integrity = PACKAGES[name]
    place = work / f"{name}-{version}"
    if place.is_dir():
        return place
    with tempfile.TemporaryDirectory() as tmp:
        command = ["npm", "pack", "--silent", "--prefer-offline", f"{name}@{version}"]
        done = subprocess.run(command, cwd=tmp, capture_output=True, text=True)
        archives = list(Path(tmp).glob("*.tgz"))
        if done.returncode or not archives:
            raise OSError(
                f"npm could not fetch {name} {version}: {done.stderr.strip()[-200:] or 'no reason given'}"
            )
        sum_here = "sha512-" + base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if sum_here != integrity:
            raise ValueError(
                f"{name} {version} from npm is not what was checked: {sum_here}, expected {integrity}"
            )
        with tarfile.open(archives[0]) as tar:
            tar.extractall(tmp, filter="data")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(Path(tmp) / "package", place)
    return place


def katex(work: Path) -> Path | None:
    """Folder with KaTeX's program, style and fonts; None, with a word, where formulas must do without."""
    try:
        if not shutil.which("node"):
            raise OSError("node is not installed")
        dist = from_npm("katex", work) / "dist"
    except OSError as error:
        print(f"formulas become MathML, not KaTeX, which needs npm and node: {error}", file=sys.stderr)
        return None
    place = work / "katex"
    if not place.is_dir():
        (place / "fonts").mkdir(parents=True)
        for name in ("katex.min.css", "katex.min.js"):
            shutil.copy(dist / name, place)
        for font in (dist / "fonts").glob("*.woff2"):
            shutil.copy(font, place / "fonts")
    return place
