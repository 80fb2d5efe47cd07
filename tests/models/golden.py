"""Golden values of published networks: outputs that their own code gave, names and shapes of their files."""

import json

import pytest

from tests.conftest import GOLDEN_DIR

GOLDEN = json.loads((GOLDEN_DIR / "golden_outputs.json").read_text())


def manifest(name):
    """Names and shapes of a published file."""
    return {k: tuple(v) for k, v in json.loads((GOLDEN_DIR / "state_dicts" / f"{name}.json").read_text()).items()}


def agrees(x, entry, rtol):
    """Does a tensor agree with a golden entry: shape, first and last values, sum and absolute sum?"""
    want = GOLDEN[entry]
    flat = x.double().flatten()
    got = [*flat[:4].tolist(), *flat[-2:].tolist()]
    assert list(x.shape) == want["shape"]
    n = min(4, flat.numel())
    assert got == pytest.approx([*want["first"][:n], *want["last"]], rel=rtol, abs=rtol * 0.01 + 1e-6)
    assert float(flat.sum()) == pytest.approx(want["sum"], rel=rtol, abs=rtol * want["abs_sum"])
    assert float(flat.abs().sum()) == pytest.approx(want["abs_sum"], rel=rtol)
