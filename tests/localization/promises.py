"""Which localizer keeps which promise: `python -m tests.localization.promises` prints the table, in Markdown.

Nothing is judged here: the tests of `test_promises` are run, case by case, and their outcomes are written down. A
word in the place of a tick is an exception that those tests know and hold to.
"""

import pytest

from tests.localization import test_promises as promises

# Column: the tests behind it.
COLUMNS = {
    "padding": ("test_padding_and_neighbours_never_change_a_frame", "test_padding_never_changes_training"),
    "frames known": ("test_frames_are_counted_without_running", "test_any_number_of_frames_passes"),
    "short": ("test_one_frame_and_a_twentieth_of_a_second_are_finite", "test_less_than_a_frame_is_refused"),
    "60 s": ("test_a_minute_runs_in_bounded_memory",),
    "gradient": ("test_gradient_reaches_every_parameter",),
    "shift": ("test_a_later_sound_moves_the_output_by_whole_frames",),
    "save, load": ("test_save_and_load_keep_scores_and_prior",),
    "compile": ("test_compile",),
    "export": ("test_export",),
}


class Outcomes:
    """A pytest plugin that notes how each test of each case ended."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report) -> None:
        name, _, case = report.nodeid.rpartition("::")[2].partition("[")
        if report.when == "call" or report.outcome != "passed":
            self.found[name, case.rstrip("]")] = report.outcome


def exception(case: str, column: str) -> str:
    """What the tests hold a case to instead, in a word; empty for the rule itself."""
    if column == "gradient" and case in promises.TRAINING_FREE:
        return "nothing learns"
    if column == "shift" and case in promises.NO_SHIFT:
        return "mostly"
    if column == "shift" and case in promises.REMEMBERS:
        return "within a tenth" if promises.REMEMBERS[case] <= 0.1 else "within a fifth"
    if column == "compile" and case in promises.NO_GRAPH:
        return "two graphs"
    if column == "export" and case in promises.NO_GRAPH:
        return "refused"
    return ""


def cell(case: str, column: str, found: dict[tuple[str, str], str]) -> str:
    """A tick, a known exception, a dash for what is not asked, or FAILED."""
    outcomes = {found[name, case] for name in COLUMNS[column] if (name, case) in found}
    if not outcomes:
        return "–"
    if outcomes != {"passed"}:
        return "FAILED"
    return exception(case, column) or "✓"


def table(found: dict[tuple[str, str], str]) -> str:
    """Markdown: a row a localizer, `/ssl` for one on a network of the wav2vec 2.0 kind."""
    lines = ["| localizer | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for case in promises.CASES:
        lines.append(f"| `{case}` | " + " | ".join(cell(case, column, found) for column in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> None:
    outcomes = Outcomes()
    pytest.main([promises.__file__, "-q", "--no-header", "-p", "no:cacheprovider"], plugins=[outcomes])
    print(table(outcomes.found))


if __name__ == "__main__":
    main()
