"""Every scheme in every arm that it has: what tests of all schemes run over."""

import pytest

from suite import registry

ENTRIES = [(name, arm) for arm in registry.ARMS for name in registry.names(arm)]


def slow_but(told, cases):
    """The cases of a parametrisation, all slow but those that tell enough; each a text or a tuple."""
    assert set(told) <= set(cases)
    words = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*each, marks=() if case in told else pytest.mark.slow) for case, each in zip(cases, words, strict=True)]
