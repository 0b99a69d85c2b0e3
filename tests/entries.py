"""Every scheme in every arm that it has: what tests of all schemes run over."""

from suite import registry

ENTRIES = [(name, arm) for arm in registry.ARMS for name in registry.names(arm)]
