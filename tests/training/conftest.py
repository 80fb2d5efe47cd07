"""What several tests of training begin with."""

import pytest


@pytest.fixture(scope="module")
def splits(samples):
    """Train and dev of the embedded corpus, whole fakes only."""
    full = samples.subset(kind="full")
    return full.subset(split="train"), full.subset(split="dev")
