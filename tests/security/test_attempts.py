"""Every attempt of `attempts` is refused clearly or gives the right answer."""

import pytest

from tests.security.attempts import FLAG, KINDS, outcome


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_refused_clearly_or_right(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried = 0
    other = []
    for attempt in kind(tmp_path):
        ended = outcome(attempt)
        tried += 1
        if ended not in ("refused", "right"):
            other.append(f"{attempt.what}: {ended}")
    assert not other, f"{len(other)} of {tried}:\n" + "\n".join(other[:40])
    assert tried > 20
    assert not list(tmp_path.rglob(f"{FLAG}*"))
