"""Run folders become tables, and any two are compared on the same trials."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT
from wedefense_nb.data.manifest import Manifest
from wedefense_nb.metrics import drawn_together
from wedefense_nb.scores.comparison import paired_test, training_spread
from wedefense_nb.scores.planning import method_test
from wedefense_nb.scores.runs import (
    common_system,
    compare_runs,
    differing,
    find_runs,
    pick,
    run_table,
    settings_table,
)
from wedefense_nb.task import label_ids

DEV = Manifest.read(ROOT / "data_samples").subset(split="dev").utterances.iloc[::4]
TRUTH = label_ids(DEV.label)


def scores_of(model: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([ord(model), seed])
    return {"A": 1.0, "B": 2.0}[model] * TRUTH + 0.7 * rng.normal(size=len(DEV))


def write(folder, metrics=None, scores=None, split="dev", **parameters):
    """A run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"data": str(ROOT / "data_samples"), "out": str(folder), "training": {"epochs": 3}} | parameters
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    if metrics is not None:
        rows = [{"system": s, "metric": m, "value": v, "low": low, "high": h} for s, m, v, low, h in metrics]
        (folder / "result.json").write_text(json.dumps({"metrics": rows, "seed": parameters.get("seed")}))
    if scores is not None:
        (folder / "scores").mkdir(exist_ok=True)
        table = pd.DataFrame({"utt": DEV.utt, "score": scores, "llr": 2 * scores, "label": DEV.label})
        table.sample(frac=1, random_state=len(folder.name)).to_csv(folder / f"scores/{split}.csv", index=False)


@pytest.fixture
def runs(tmp_path):
    """Two settings of three seeds, of which the last run of B is not complete."""
    for model in "AB":
        for seed in range(3):
            eer = {"A": 0.2, "B": 0.1}[model] + 0.01 * seed
            metrics = [("dev, before", "eer", 0.5, None, None), ("dev, after", "eer", eer, eer - 0.05, eer + 0.05)]
            metrics.append(("dev, after", "min_dcf", 0.3, None, None))
            done = None if (model, seed) == ("B", 2) else metrics
            write(tmp_path / f"m={model}/seed={seed}", done, scores_of(model, seed), model=model, seed=seed)
    return find_runs(tmp_path)


def test_runs_are_found_with_what_differs(runs):
    assert [run.name for run in runs] == [f"m={m}/seed={s}" for m in "AB" for s in range(3)]
    assert differing(runs) == ["model", "seed"] and runs[5].result == {} and runs[1].seed == 1
    assert runs[0].parameters["lr"] == 1e-3 and "out" not in runs[0].parameters  # defaults of the loop, too
    assert runs[0].setting == runs[1].setting != runs[3].setting


def test_tables_agree_with_the_numbers(runs):
    table = run_table(runs)
    assert common_system(runs) == "dev, after" and table.complete.tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(table.eer[:5], [0.2, 0.21, 0.22, 0.1, 0.11])
    np.testing.assert_allclose(table["eer high"] - table["eer low"], [0.1] * 5 + [np.nan])
    assert table["min_dcf low"].isna().all() and run_table(runs, "dev, before").eer[0] == 0.5
    by_setting = settings_table(runs)
    assert by_setting.model.tolist() == ["B", "A"] and by_setting.runs.tolist() == [2, 3]
    assert by_setting.missing.tolist() == [1, 0]
    for row, values in zip(by_setting.itertuples(), ([0.1, 0.11], [0.2, 0.21, 0.22]), strict=True):
        spread = training_spread(values)
        assert (row.mean, row.std, row.low, row.high) == pytest.approx(tuple(spread[:4]))
    single = settings_table(runs[:1])
    assert single["mean"][0] == 0.2 and np.isnan(single["std"][0])
    with pytest.raises(ValueError, match="no run has a system 'eval'; there are dev, after, dev, before"):
        run_table(runs, "eval")


def test_a_table_never_mixes_dev_and_eval(tmp_path):
    dev, ev = (("dev, after", "eer", 0.1, None, None), ("eval, after", "eer", 0.3, None, None))
    write(tmp_path / "a", [dev, ev], seed=0)
    write(tmp_path / "b", [dev], seed=1)
    assert run_table(find_runs(tmp_path)).eer.tolist() == [0.1, 0.1]
    write(tmp_path / "b", [dev, ev], seed=1)
    assert run_table(find_runs(tmp_path)).eer.tolist() == [0.3, 0.3]


def test_two_runs_are_compared_as_by_hand(runs):
    found, text = compare_runs([runs[0]], [runs[3]], n=50)
    groups, _ = drawn_together(DEV, TRUTH)
    by_hand = paired_test("eer", scores_of("A", 0), scores_of("B", 0), TRUTH, groups, 50)
    assert found.value == pytest.approx(by_hand.value) and found.value > 0 and "drawn by speaker" in text
    assert "two runs on dev: says nothing about other trainings" in text
    worst, _ = compare_runs([runs[0]], [runs[3]], metric="cllr", n=20)
    doubled = paired_test("cllr", 2 * scores_of("A", 0), 2 * scores_of("B", 0), TRUTH, n=20)
    assert worst.value == pytest.approx(doubled.value)  # the llr, not the score


def test_settings_are_compared_by_the_seeds_that_both_have(runs):
    found, text = compare_runs(pick(runs, "m=A")[1:], pick(runs, "m=B/"), n=30)
    first, second = ([scores_of(m, s) for s in (1, 2)] for m in "AB")
    assert found.value == pytest.approx(method_test("eer", first, second, TRUTH, n=30).value)
    assert text.startswith("2 seeds of each on dev")
    with pytest.raises(ValueError, match="two seeds or more that both have"):
        compare_runs(runs[:2], runs[5:6])


def test_without_the_corpus_trials_are_drawn_and_it_is_said(tmp_path):
    for seed, model in enumerate("AB"):
        write(tmp_path / model, [], scores_of(model, 0), data="nowhere", seed=seed)
    runs = find_runs(tmp_path)
    assert "no speakers are known" in compare_runs(runs[:1], runs[1:], n=20)[1]


def test_what_cannot_be_done_is_said(runs, tmp_path):
    for name, what in (("m=C", "no run and no setting"), ("", "no run and no setting")):
        with pytest.raises(ValueError, match=what):
            pick(runs, name)
    with pytest.raises(ValueError, match="unknown metric 'err'"):
        compare_runs(runs[:1], runs[1:2], metric="err")
    (runs[0].path / "scores/dev.csv").unlink()
    with pytest.raises(ValueError, match=r"missing in m=A/seed=0"):
        compare_runs(runs[:1], runs[1:2])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run folders"):
        find_runs(tmp_path / "empty")
    (runs[0].path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="result.json"):
        find_runs(tmp_path)


def test_a_folder_of_several_settings_is_no_setting(tmp_path):
    for i in range(2):
        write(tmp_path / f"all/{i}", [], model="AB"[i], seed=0)
    with pytest.raises(ValueError, match="holds several settings"):
        pick(find_runs(tmp_path), "all")


def test_other_recipes_and_older_runs_are_read_too(tmp_path):
    write(tmp_path / "a", training={"a_field_of_long_ago": 3}, seed=0)
    rows = [{"set": "dev", "metric": "point EER", "resolution": 0.02, "value": 0.2, "low": 0.1, "high": 0.3}]
    write(tmp_path / "b", [], seed=1)
    (tmp_path / "b/result.json").write_text(json.dumps({"metrics": [*rows, {"odd": 1}, 3]}))
    runs = find_runs(tmp_path)
    assert runs[0].parameters["training"] == {"a_field_of_long_ago": 3}
    assert run_table(runs)["point EER at 20 ms"][1] == 0.2 and not run_table(runs).complete[0]
    (tmp_path / "b/result.json").write_text(json.dumps({"metrics": {"not": "rows"}}))
    assert "eer" not in run_table(find_runs(tmp_path)) and settings_table(find_runs(tmp_path))["mean"].isna().all()
