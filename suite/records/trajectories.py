"""What is one sample: protocols that differ in length and measurement alone train one and the same run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def once(runs: pd.DataFrame) -> pd.DataFrame:
    """Of the runs of several folders one row a trajectory: the longest horizon's, of several the first; a row without one stays.

    runs: rows of runs.csv, one below the other, under an index without repeats.
    """
    longest = runs.sort_values("horizon", ascending=False, kind="stable")
    again = longest["trajectory"].duplicated() & (longest["trajectory"] != "")
    return longest[~again].sort_index()
