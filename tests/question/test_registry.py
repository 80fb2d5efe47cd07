"""Names lead to things, wrong names to a sentence."""

import pickle
import sys
import types

import pytest

from wedefense_nb.registry import (
    Registry,
    UnknownName,
    check_options,
    import_named,
    strangers,
    trusting,
    unknown,
)


def test_a_wrong_name_is_answered_with_the_right_ones():
    r = Registry("codec")
    r.add("opus", 1)
    r.add("mp3", 2)
    with pytest.raises(
        UnknownName, match="unknown codec 'ops': did you mean 'opus'. There are mp3, opus"
    ) as error:
        r["ops"]
    assert isinstance(error.value, ValueError) and isinstance(error.value, KeyError)
    with pytest.raises(ValueError, match="unknown codec 'zzz'; there are mp3, opus"):
        r["zzz"]
    with pytest.raises(ValueError, match="there are none"):
        Registry("thing")["a"]
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # as it comes out of a worker process


def test_it_is_a_mapping_in_alphabetical_order():
    r = Registry("shape")

    @r.register("square")
    def square():
        return 4

    assert square() == 4 and r.register("circle")(square) is square  # what is below a decorator keeps its name
    assert list(r) == ["circle", "square"] and len(r) == 2 and "square" in r and "cube" not in r
    assert r.get("cube") is None and r["square"]() == 4 and dict(r)["circle"] is square


def test_two_modules_cannot_take_one_name_but_a_notebook_may_repeat_itself():
    r = Registry("detector")
    r.add("x", 1, owner="a")
    with pytest.raises(ValueError, match="two detectors are called 'x': one of a and one of b"):
        r.add("x", 2, owner="b")
    r.add("x", 3, owner="a")
    r.add("x", 4, owner="__main__")
    r.add("x", 5, owner="a")
    assert r["x"] == 5


def test_a_home_is_imported_at_the_first_look_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "somehome").mkdir()
    (tmp_path / "somehome/__init__.py").write_text("")
    (tmp_path / "somehome/one.py").write_text(
        "from keeper import KEEPER\n@KEEPER.register('one')\ndef one(): return 1\n"
    )
    keeper = types.ModuleType("keeper")
    keeper.KEEPER = Registry("thing", "somehome")
    monkeypatch.setitem(sys.modules, "keeper", keeper)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "somehome.one" not in sys.modules
    assert keeper.KEEPER["one"]() == 1
    with pytest.raises(UnknownName):
        keeper.KEEPER["two"]


def test_options_are_compared_before_the_call():
    def square(side, *, color="red"):
        return side

    check_options("square", square, {"color": 1, "side": 2})
    with pytest.raises(ValueError, match="unknown option of square 'colour': did you mean 'color'"):
        check_options("square", square, {"colour": 1})
    with pytest.raises(ValueError, match="unknown option of square 'side'; there are color"):
        check_options("square", square, ["side"], skip=("side",))
    assert "there are 1, 2" in str(unknown("number", "seven", [1, 2]))


def test_an_address_leads_to_what_is_installed_or_lies_here(tmp_path, monkeypatch):
    assert import_named("math:sqrt")(9) == 3 and import_named("os.path:basename")("a/b") == "b"
    (tmp_path / "own_things.py").write_text("def seven():\n    return 7\n")
    (tmp_path / "math.py").write_text("sqrt = None\n")
    with pytest.raises(ValueError, match="own_things:seven: no module 'own_things', neither installed nor in"):
        import_named("own_things:seven")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert import_named("own_things:seven")() == 7 and import_named("math:sqrt") and sys.path == before
    with pytest.raises(ValueError, match="unknown thing in own_things 'eight'"):
        import_named("own_things:eight")
    for odd in ("own_things", "own_things:", ":seven", "../own:seven", "own things:seven", "a:b:c"):
        with pytest.raises(ValueError, match="is no address"):
            import_named(odd)
    del sys.modules["own_things"]


def test_an_address_in_a_strangers_file_is_not_followed_unless_it_is_repeated(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('this code ran')\n")
    monkeypatch.chdir(tmp_path)
    with strangers(), trusting("trap:other", "trap"):
        with pytest.raises(ValueError, match="trap:spring is code that does not come with this library.*--trust"):
            import_named("trap:spring")
    with trusting("math:sqrt"), strangers():
        assert import_named("math:sqrt")(4) == 2
    with strangers(), pytest.raises(ValueError, match="math:sqrt is code"):  # trust ends with its passage
        import_named("math:sqrt")
    assert import_named("math:sqrt")(4) == 2
