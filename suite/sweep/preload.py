"""What the process that the others are forked from imports (suite/isolation/forks.py): all that trains, and no scheme."""

import gc
from importlib import import_module

gc.disable()  # collecting over what is only being imported takes a seventh of the time
for name in ("suite.sweep.execute", "suite.sweep.tryout", "sklearn.datasets", "sklearn.model_selection"):
    import_module(name)
gc.freeze()  # a collection in a fork passes over what all share, and so copies none of it
gc.enable()
