"""What the process that the others are forked from imports (suite/isolation/forks.py): all that trains, and no scheme."""

import gc

gc.disable()  # collecting over what is only being imported takes a seventh of the time
import sklearn.datasets  # noqa: E402, F401
import sklearn.model_selection  # noqa: E402, F401

import suite.model.compiled_blocks  # noqa: E402, F401
import suite.sweep.execute  # noqa: E402, F401
import suite.sweep.tryout  # noqa: E402, F401

gc.freeze()  # a collection in a fork passes over what all share, and so copies none of it
gc.enable()
