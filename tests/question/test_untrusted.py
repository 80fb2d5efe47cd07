"""Names, transfers and texts from strangers: the rules one by one (`tests/security` tries them in bulk)."""

import json

import pytest

from wedefense_nb.untrusted import SourceError, check_source, is_url, parse_json, read_mapping, to_text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("b.tar", "https://host/v1/b.tar"),
        ("sub/b.tar", "https://host/v1/sub/b.tar"),
        ("../b.tar", "https://host/b.tar"),
        ("/etc/passwd", "https://host/etc/passwd"),
        ("//other/b.tar", "https://other/b.tar"),
        ("http://other/b.tar", "http://other/b.tar"),
        ("a b;touch x.tar", "https://host/v1/a b;touch x.tar"),
        ("{0..9}.tar", "https://host/v1/{0..9}.tar"),
    ],
)
def test_a_list_on_the_web_names_files_on_the_web(name, wanted):
    assert check_source(name, base="https://host/v1/list.txt") == wanted


@pytest.mark.parametrize("name", ["file:///etc/passwd", "pipe:ls", "ftp://host/a", "data:,x", "javascript:x"])
@pytest.mark.parametrize("base", ["", "http://host/list.txt"])
def test_other_schemes_are_refused_everywhere(name, base):
    with pytest.raises(SourceError, match="only paths, http: and https: are opened"):
        check_source(name, base)


@pytest.mark.parametrize(
    "name", ["a.tar", "/data/a.tar", "./pipe:ls", "2024:01/a.tar", r"C:\data\a.tar", "a b.tar"]
)
def test_paths_stay_as_they_are(name):
    assert check_source(name) == name and not is_url(name)


def test_text_is_utf_8_with_or_without_a_mark():
    assert to_text("ä".encode(), "f") == to_text("ä".encode("utf-8-sig"), "f") == "ä"
    for data in ("ä".encode("latin-1"), "a".encode("utf-16"), "ab".encode("utf-16-be"), b"a\0"):
        with pytest.raises(KeyErrorLike, match="f.txt: not text in UTF-8"):
            to_text(data, "f.txt", KeyErrorLike)


class KeyErrorLike(ValueError):
    """A caller's own error."""


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 50_000, "1" * 5000, "{,}", "nul"])
def test_json_of_any_kind_ends_in_a_sentence(text):
    with pytest.raises(ValueError, match="f.json: n(ot JSON|ested)"):
        parse_json(text, "f.json")


def test_settings_are_names_and_values(tmp_path):
    for name, text in {"a.yaml": "a: 1\nb: [x]\n", "a.json": json.dumps({"a": 1, "b": ["x"]})}.items():
        (tmp_path / name).write_text(text)
        assert read_mapping(tmp_path / name) == {"a": 1, "b": ["x"]}
    for text in ("", "- a", "a", "1: 2", "a: !!python/name:os.system", "a: [", "a: " + "[" * 5000):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(ValueError, match="b.yaml: "):
            read_mapping(tmp_path / "b.yaml")


@pytest.mark.parametrize("text", ["", "\n", "# all at their defaults\n", "---\n"])
def test_no_names_at_all_are_an_error_unless_allowed(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match="a.yaml: expected lines of the form .* it is empty"):
        read_mapping(tmp_path / "a.yaml")
    assert read_mapping(tmp_path / "a.yaml", may_be_empty=True) == {}
