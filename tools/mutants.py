"""Do the tests notice? Plants one small bug at a time in the exported modules and runs the tests that should fail.

    python tools/mutants.py                    all of them, an hour or more
    python tools/mutants.py metrics losses     those of some modules
    python tools/mutants.py --jobs 2

The bugs are written down in `tools/mutants/<part>.yaml`: the module, the text to replace (it must occur once),
what to put there, and the tests. A bug that no test notices survives: write the test. The clone is not touched;
each worker has a copy of its own. First the tests are run without any bug: those that fail anyway tell nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pandas as pd
import yaml
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".venv", ".git", "runs", "_docs", "_proc", "build", "__pycache__", "*.egg-info")
ENOUGH = 0.95


def bugs(wanted: list[str]) -> list[dict]:
    """The bugs of all parts, or of modules whose name contains one of the words."""
    found = []
    for file in sorted((ROOT / "tools" / "mutants").glob("*.yaml")):
        found += yaml.safe_load(file.read_text())
    return [b for b in found if not wanted or any(word in b["module"] for word in wanted)]


def plant(bug: dict, place: Path) -> tuple[Path, str]:
    """Write the module with the bug; returns the file and its old text."""
    file = place / "wedefense_nb" / (bug["module"].replace(".", "/") + ".py")
    text = file.read_text()
    if text.count(bug["old"]) != 1:
        raise ValueError(f"{bug['module']}: {bug['old']!r} occurs {text.count(bug['old'])} times, must be once")
    file.write_text(text.replace(bug["old"], bug["new"]))
    return file, text


def run_tests(tests: list[str], place: Path, timeout: float | None = None) -> subprocess.CompletedProcess:
    """Pytest in a copy of the clone, on the package of that copy, until something fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", *tests]
    env = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=timeout)


def fate(bug: dict, place: Path, timeout: float) -> str:
    """`caught` (a test fails), `survived` (all pass), or `stale` (the text to replace is not there)."""
    try:
        file, text = plant(bug, place)
    except ValueError as error:
        return f"stale: {error}"
    try:
        done = run_tests(bug["tests"].split(), place, timeout)
        if done.returncode not in (0, 1, 2):  # 2: the module does not even import
            return f"stale: pytest ended with {done.returncode}: {done.stdout[-200:]}"
        return "caught" if done.returncode else "survived"
    except subprocess.TimeoutExpired:
        return "caught"  # it hangs: nobody would overlook that
    finally:
        file.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only modules whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one bug")
    given = parser.parse_args()
    planted = bugs(given.words)
    with tempfile.TemporaryDirectory() as folder:
        places = Queue()
        for i in range(given.jobs):
            places.put(Path(shutil.copytree(ROOT, Path(folder) / str(i), ignore=LEFT_OUT, symlinks=True)))

        named = sorted({test for bug in planted for test in bug["tests"].split()})
        healthy = run_tests(named, Path(folder) / "0")
        if healthy.returncode:
            print(f"the tests fail without any bug, so they cannot tell:\n{healthy.stdout[-2000:]}")
            return 2

        def meet(bug: dict) -> str:
            place = places.get()
            try:
                result = fate(bug, place, given.timeout)
            finally:
                places.put(place)
            if result != "caught":
                tqdm.write(f"{bug['module']}: {bug['bug']}: {result}")
            return result

        with ThreadPoolExecutor(given.jobs) as pool:
            fates = list(tqdm(pool.map(meet, planted), total=len(planted), unit="bug"))
    table = pd.DataFrame([{"module": b["module"], "bug": b["bug"]} for b in planted]).assign(fate=fates)
    if set(fates) == {"caught"}:
        print("none survived")
    else:
        print(table[table.fate != "caught"].to_string(index=False))
    each = table.assign(caught=table.fate == "caught").groupby("module").caught.agg(["size", "sum"])
    print(each.rename(columns={"size": "planted", "sum": "caught"}).to_string())
    share = Counter(fates)["caught"] / len(fates)
    print(f"{Counter(fates)['caught']} of {len(fates)} caught, {share:.0%}")
    return int(share < ENOUGH)


if __name__ == "__main__":
    raise SystemExit(main())
