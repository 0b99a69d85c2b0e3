"""Fixtures of the scheme tests."""

import pytest
from cases import normal


@pytest.fixture
def given():
    """A trunk and the matrix of a linear branch."""
    return 3 * normal(2, 7, 8), normal(8, 8, seed=1)
