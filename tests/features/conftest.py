"""Files of tiny self-supervised networks, written once, and a batch to send through them."""

import pytest
import torch

from tests.features.ssl_files import SSL_FAMILIES, s3prl_file
from wedefense_nb.features.upstreams import tiny_checkpoint


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A converted file of s3prl for each family."""
    folder = tmp_path_factory.mktemp("ssl")
    return {family: s3prl_file(family, folder / f"{family}.pt") for family in SSL_FAMILIES}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pt")


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    wave = 0.1 * torch.randn(3, 9000, generator=g)
    lengths = torch.tensor([9000, 7000, 500])
    for row, n in zip(wave, lengths, strict=True):
        row[n:] = 0
    return wave, lengths
