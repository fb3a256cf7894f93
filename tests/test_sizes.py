"""Bytes as people write them."""

import pytest

from clipfuse.errors import ConfigError
from clipfuse.sizes import as_bytes


@pytest.mark.parametrize(
    ("told", "want"), [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), (7, 7), ("1.5k", 1500), (None, None)]
)
def test_sizes(told, want):
    assert as_bytes(told) == want


@pytest.mark.parametrize("told", ["", "much", "0", -1, 0, "1PB"])
def test_wrong_sizes(told):
    with pytest.raises(ConfigError, match="memory: takes bytes"):
        as_bytes(told)
