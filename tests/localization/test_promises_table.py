"""The table of promises says what the tests said."""

import json

from tests.conftest import ROOT
from tests.localization import promises, test_promises
from wedefense_nb.models.detector import LOCALIZERS


def test_every_column_has_tests_and_every_promise_a_column():
    named = {name for names in promises.COLUMNS.values() for name in names}
    assert all(callable(getattr(test_promises, name)) for name in named)
    plain = {
        "test_embeddings_scores_and_losses_fit_together",
        "test_evaluation_is_deterministic_and_silence_is_finite",
    }
    assert {name for name in dir(test_promises) if name.startswith("test_")} - named == plain


def test_a_failure_is_written_as_one_and_an_exception_by_its_word():
    found = {
        ("test_export", "bam"): "failed",
        ("test_export", "tdl"): "passed",
        ("test_compile", "bam"): "skipped",
    }
    found |= {("test_export", "frame_lcnn_lstm"): "passed"}
    words = [promises.cell(case, "export", found) for case in ("bam", "tdl", "frame_lcnn_lstm", "trace/ssl")]
    assert words == ["FAILED", "✓", "refused", "–"]
    assert promises.cell("bam", "compile", found) == "FAILED"
    assert promises.table(found).count("\n") == len(test_promises.CASES) + 1


def test_the_page_of_the_part_has_a_row_for_every_localizer():
    cells = json.loads((ROOT / "nbs/7_localization/index.ipynb").read_text())["cells"]
    shown = next(cell["source"] for cell in cells if cell["id"] == "promis07")
    lines = "".join(shown).splitlines()
    heads = [line.split("|")[1].strip(" `") for line in lines if line.startswith("| `")]
    assert heads == list(LOCALIZERS)
    columns = next(line for line in lines if line.startswith("| localizer"))
    assert columns == "| localizer | " + " | ".join(promises.COLUMNS) + " |"
