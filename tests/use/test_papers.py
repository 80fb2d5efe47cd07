"""The command `papers`: published numbers stay as printed, and a run is ours only if it was made like the file."""

import json
import re
import shutil

import pytest
import yaml

from tests.conftest import ROOT
from tests.use.shell import quick
from wedefense_nb.metrics import act_dcf, cllr, eer
from wedefense_nb.scores.score_files import read_scores
from wedefense_nb.task import label_ids
from wedefense_nb.training.recipes import find_recipe, merge_parameters
from wedefense_nb.use.commands.papers import (
    PaperRow,
    as_printed,
    least_memory,
    own_value,
    own_values,
    paper_records,
    paper_sizes,
    read_papers,
    repetitions,
    run_command,
)

NAME = "partialspoof/wedefense_v15_mhfa"
TABLES = read_papers()


def table(place, paper="WeDefense:"):
    return next(t for t in TABLES if t.paper.startswith(paper) and t.place == place)


def row(place, name, paper="WeDefense:"):
    return next(r for r in table(place, paper).rows if r.row == name)


def made(folder, file, *pairs, recipe="detection", scores="scores", **found):
    """A run folder as a recipe leaves it, with scores of the embedded corpus."""
    values = merge_parameters(find_recipe(recipe), ROOT / f"params/{file}.yaml", [p.split("=", 1) for p in pairs])
    shutil.copytree(ROOT / "data_samples/scores/lcnn", folder / scores)
    (folder / "result.json").write_text(json.dumps({"recipe": recipe, "parameters": values, **found}))
    return folder


# The numbers


def test_tables_of_the_paper_are_those_of_the_paper():
    """Spot checks by hand, one a table, and the shape of each."""
    shapes = {}
    for t in TABLES:
        if t.paper.startswith("WeDefense:"):
            shapes[t.place] = (len(t.rows), len(t.columns))
    expected = {"Table I": (8, 2), "Table II": (6, 2), "Table III": (7, 2), "Table IV": (4, 4)}
    assert shapes == expected | {"Table V": (8, 4), "Table VI": (2, 5), "Table VII": (4, 2)}
    assert row("Table I", "PS_v11").values == (0.668, 1.384)
    assert row("Table II", "A5_v01").values == (21.81, 50.432)
    assert row("Table III", "Aug 4").values == (0.648, 4.821) and row("Table III", "[13]").values == (0.76, None)
    assert row("Table IV", "v15 LR").values == (0.076, 0.047, 0.564, 0.224)
    assert row("Table V", "LR PS_v15 + A5_v15").values == (0.241, 0.87, 1.273, 8.097)
    assert row("Table VI", "Eval. set").values == (-31.4, -12.07, 59.7, 40.53, 35.58)
    assert row("Table VII", "BAM").values == (4.84, 12.53)


def test_a_number_that_stands_twice_is_the_same():
    """The paper repeats MHFA in four tables."""
    assert row("Table II", "A5_v15").values == row("Table III", "Aug 0").values
    assert row("Table V", "A5_v15").values[2:] == row("Table II", "A5_v15").values
    assert row("Table V", "PS_v15").values[:2] == row("Table I", "PS_v15").values


def test_errors_lie_where_errors_can():
    for t in TABLES:
        for r in t.rows:
            for column, value, mean in zip(t.columns, r.values, r.means, strict=True):
                if column["measure"].endswith("eer") and value is not None:
                    assert 0 < value < 100
                    assert mean is None or mean >= value  # the best training is not worse than the mean


@pytest.mark.parametrize(
    "text, what",
    [("tables: 3\n", "no index of papers"), ("a: 1\n", "no index of papers"), ("- a\n", "expected lines")],
)
def test_something_else_is_no_index(tmp_path, text, what):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=what):
        read_papers(path)


def test_memory_counts_what_learns_and_what_does_not():
    assert least_memory(100.0, 1.0) == pytest.approx((99 * 4 + 16) / 1000)
    total, learning = paper_sizes()["partialspoof/frozen_xlsr_53_mhfa"]
    assert total > 300 and learning < 2


# Whose run


def test_a_run_is_ours_whatever_it_is_called(tmp_path):
    allowed = ["seed=7", "workers=0", "final=true", "data=/elsewhere/partialspoof", "replicates=10", "out=x"]
    run = made(tmp_path / "anything", NAME, *allowed)
    made(tmp_path / "second", NAME)
    found = repetitions([NAME, "asvspoof5/wedefense_v15_mhfa", "partialspoof/frozen_xlsr_53_mhfa"], tmp_path)
    assert found == {NAME: [run, tmp_path / "second"]}


@pytest.mark.parametrize(
    "other",
    [
        "lr=2e-5",
        "data=data/asvspoof5",
        "augment=codec",
        "epochs=6",
        "start=a/model",
        "model_options={upstream: xlsr_53}",
    ],
)
def test_a_run_made_otherwise_is_not_ours(tmp_path, other):
    made(tmp_path / "run", NAME, other)
    assert repetitions([NAME], tmp_path) == {}


def test_what_is_no_run_is_passed_over(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/result.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/result.json").write_text('{"recipe": "detection"}')
    assert repetitions([NAME], tmp_path) == {} and repetitions([NAME], tmp_path / "nowhere") == {}


def test_our_numbers_are_those_of_the_scores(tmp_path):
    run = made(tmp_path / "run", NAME)
    eval_scores = read_scores(run / "scores/eval.csv")
    labels = label_ids(eval_scores.label)
    mhfa = row("Table I", "PS_v15")
    assert own_value(mhfa, table("Table I").columns[1], run) == pytest.approx(100 * eer(eval_scores.score, labels))
    costs = table("Table IV").columns[2:]
    calibrated = PaperRow("x", "x", ("asvspoof5",), column="llr")
    expected = [cllr(eval_scores.llr, labels), act_dcf(eval_scores.llr, labels)]
    assert [own_value(calibrated, c, run) for c in costs] == pytest.approx(expected)
    (run / "scores/eval.csv").unlink()  # eval was not looked at
    assert own_value(mhfa, table("Table I").columns[1], run) is None
    assert own_value(mhfa, table("Table I").columns[0], run) is not None


def test_scores_of_another_corpus_lie_in_its_folder(tmp_path):
    run = made(tmp_path / "run", NAME, scores="scores/asvspoof5")
    got = [own_value(row("Table V", "PS_v15"), column, run) for column in table("Table V").columns]
    assert got[:2] == [None, None] and got[2] is not None and got[3] is not None
    stage = row("Headline results", "Stage 1", "Deepfake")
    assert own_value(stage, table("Headline results", "Deepfake").columns[0], run) is None


def test_frames_fusions_and_maps_come_from_the_result(tmp_path):
    records = [
        {"set": s, "metric": "point EER", "resolution": r, "value": v}
        for s, r, v in (("dev", 0.02, 0.1), ("eval", 0.16, 0.2), ("eval", 0.02, 0.3))
    ]
    run = made(tmp_path / "frames", "partialspoof/wedefense_mhfa", recipe="localization", metrics=records)
    mhfa = row("Table VII", "MHFA")
    assert [own_value(mhfa, c, run) for c in table("Table VII").columns] == pytest.approx([10.0, 30.0])
    fused = [{"system": name, "metric": "eer", "value": v} for name, v in (("average", 0.1), ("linear", 0.2))]
    for corpus in ("partialspoof", "asvspoof5"):
        file = f"{corpus}/fusion_ps_v13_v15"
        made(tmp_path / corpus, file, recipe="fusion", metrics=fused, scores="unused")
    runs = repetitions(["partialspoof/fusion_ps_v13_v15", "asvspoof5/fusion_ps_v13_v15"], tmp_path)
    assert {name: [path.name for path in paths] for name, paths in runs.items()} == {
        "partialspoof/fusion_ps_v13_v15": ["partialspoof"],
        "asvspoof5/fusion_ps_v13_v15": ["asvspoof5"],
    }
    runs.pop("asvspoof5/fusion_ps_v13_v15")
    linear = row("Table V", "LR PS_(v13+v15)")
    assert [own_values(linear, c, runs) for c in table("Table V").columns] == [[], [pytest.approx(20.0)], [], []]
    rcq = {"gradcam": {"bonafide_speech": -3.0, "transition": 5.0}}
    run = made(tmp_path / "maps", "partialspoof/explanation_v12_eval", recipe="explanation", rcq=rcq)
    found = [own_value(row("Table VI", "Eval. set"), c, run) for c in table("Table VI").columns]
    assert found == [-3.0, None, 5.0, None, None]


def test_several_runs_are_averaged_and_counted(tmp_path):
    for seed in (1, 2):
        made(tmp_path / str(seed), NAME, f"seed={seed}")
    cell = as_printed(table("Table I"), repetitions([NAME], tmp_path)).loc["PS_v15", "Eval."]
    assert cell == "0.802 | 17.742 ×2"
    assert as_printed(table("Table III")).loc["[13]", "Eval."] == "? | –"
    assert as_printed(table("Results", "Audio deepfake")).iloc[0, 1] == "2.87 (3.88) | –"


# The command


def test_rows_can_be_asked_for():
    done = quick("papers", "--system", "mhfa", "--corpus", "PartialSpoof", "--runs", "nowhere")
    assert done.returncode == 0 and "Table VII" in done.stdout and "gMLP" not in done.stdout
    assert "detection -f params/partialspoof/wedefense_v15_mhfa.yaml" in done.stdout
    assert "trained there on one T4" in quick("papers", "--system", "two_stage").stdout
    slim = quick("papers", "--system", "slim").stdout
    assert "cannot be run: no SLIM here" in slim and "1 rows of 1 tables" in slim
    done = quick("papers", "--system", "slimm", "--corpus", "moon")
    assert done.returncode == 1 and "no row for --system slimm and --corpus moon" in done.stderr


def test_programs_get_every_number(tmp_path):
    made(tmp_path / "run", NAME)
    records = json.loads(quick("papers", "--json", "--runs", tmp_path).stdout)
    index = yaml.safe_load((ROOT / "params/papers.yaml").read_text(encoding="utf-8"))
    values = [v for t in index["tables"] for r in t["rows"] for v in r.get("values", []) if v is not None]
    assert sorted(r["published"] for r in records if r["published"] is not None) == sorted(values)
    assert all(bool(r["commands"]) != bool(r["missing"]) for r in records)
    ours = [r for r in records if r["own"]]
    assert {r["row"] for r in ours} == {"PS_v15", "XLSR-53 tuned"}
    assert {r["published"] for r in ours if r["place"] == "Table I"} == {0.237, 0.802}
    tiny = next(r for r in records if r["row"] == "W2V-Small")
    assert tiny["published"] is None and tiny["least_gb"] == pytest.approx(1.51, abs=0.01)


def test_commands_name_the_recipe_and_the_file():
    """That each file fits its recipe is tested beside the recipes."""
    files = {file for t in TABLES for r in t.rows for file in r.files}
    for file in files:
        recipe = file.split("/")[1].split("_")[0]
        recipe = recipe if recipe in ("fusion", "explanation") else "(detection|localization)"
        assert re.fullmatch(f"wedefense-nb run {recipe} -f params/{file}.yaml", run_command(file))
    assert paper_records([], {}, {}) == [] and len(files) == 83
