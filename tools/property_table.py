"""Which promise does which detector keep? `python tools/property_table.py [--models a b]` prints a markdown table.

Runs tests/models/test_promises.py (some minutes). ✓: passed; ✗: failed; a number: not supported, with the
reason below the table.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PROMISES = {  # test: title of the column
    "test_padding_and_neighbours_never_change_a_score": "padding",
    "test_padding_never_changes_training": "training padding",
    "test_shapes": "shapes",
    "test_eval_is_deterministic_and_silence_is_finite": "deterministic",
    "test_short_recordings_are_finite_in_training_too": "short",
    "test_a_batch_of_one_recording_trains": "one",
    "test_gradient_reaches_every_parameter": "gradient",
    "test_less_than_a_frame_is_refused": "refusal",
    "test_a_minute_runs_in_bounded_memory": "memory",
    "test_save_and_load_keep_scores_and_prior": "folder",
    "test_compile": "compile",
    "test_export": "export",
}


def read(report: Path) -> dict[tuple[str, str], bool]:
    """(test, model) to whether it passed, from a report of pytest."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if m := re.fullmatch(r"(\w+)\[(.+)\]", case.get("name", "")):
            found[m[1], m[2]] = not {"failure", "error", "skipped"} & {x.tag for x in case}
    return found


def markdown(found: dict, reasons: dict[str, dict[str, str]]) -> str:
    """The table; `reasons` are, for a test, the models it is known not to work for and why."""
    strange = sorted({test for test, _ in found} - set(PROMISES))
    if strange:
        raise SystemExit(
            f"error: tests without a title: {strange}; add them to PROMISES in tools/property_table.py"
        )
    notes = list(dict.fromkeys(reason for models in reasons.values() for reason in models.values()))

    def mark(test: str, model: str) -> str:
        if (test, model) not in found:
            return ""
        if found[test, model] and model in reasons.get(test, {}):
            return str(1 + notes.index(reasons[test][model]))
        return "✓" if found[test, model] else "✗"

    models = sorted({model for _, model in found})
    lines = ["| detector | " + " | ".join(PROMISES.values()) + " |", "|---" * (1 + len(PROMISES)) + "|"]
    lines += [f"| {model} | " + " | ".join(mark(test, model) for test in PROMISES) + " |" for model in models]
    return "\n".join([*lines, "", *(f"{i}: not supported, {note}" for i, note in enumerate(notes, 1))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="names; default: all")
    args = parser.parse_args()
    wanted = ["-k", " or ".join(f"[{name}]" for name in args.models)] if args.models else []
    sys.path.insert(0, str(ROOT))
    from tests.models.test_promises import NO_EXPORT, NO_GRAPH

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests/models/test_promises.py",
            "-q",
            f"--junitxml={report}",
            *wanted,
        ]
        run = subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
        if not report.is_file():
            raise SystemExit("error: pytest wrote no report")
        print(markdown(read(report), {"test_export": NO_EXPORT, "test_compile": NO_GRAPH}))
    raise SystemExit(run.returncode)


if __name__ == "__main__":
    main()
