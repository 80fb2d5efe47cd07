"""The planted bugs of tools/mutants still fit the modules. (Do tests notice them? `python tools/mutants.py`.)"""

import importlib.util

from tests.conftest import ROOT
from tests.house.house import MODULES, name_of

spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)
BUGS = mutants.bugs([])


def test_every_bug_can_be_planted_and_every_module_has_one():
    stale = []
    for bug in BUGS:
        assert set(bug) == {"module", "bug", "old", "new", "tests"} and bug["old"] != bug["new"]
        text = (ROOT / "wedefense_nb" / f"{bug['module'].replace('.', '/')}.py").read_text()
        if text.count(bug["old"]) != 1:
            stale.append((bug["module"], bug["bug"]))
        for test in bug["tests"].split():
            file, _, name = test.partition("::")
            function = name.partition("[")[0]
            assert not name or f"def {function}(" in (ROOT / file).read_text(), test
    assert stale == []
    assert {name_of(path) for path in MODULES} <= {bug["module"] for bug in BUGS}
