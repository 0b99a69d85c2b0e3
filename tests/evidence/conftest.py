"""Fixtures of the evidence tests: some runs of a committed folder, to be spoilt."""

import shutil

import pytest

from suite.environment import ROOT
from suite.records.layout import file_of, table_files
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import REAL, read_rows, write_rows

SOME = {  # three or fewer runs tell what thirty do: one that died, one that lives, one of another scheme
    "laptop": {"r206119cff8d", "r4c52d8bcf98", "rf753b9f2f6a"},  # plain at 25 and (dead) at 50 blocks, MV-Split at 25
    "stdinit": {"ra14b8dcf1a8"},
    "anatomy": {"r14e14e5915e", "rb717d07dcad"},  # MV-Split at 50 blocks, one seed dead and one alive
}


@pytest.fixture
def some_runs(tmp_path):
    """Factory: some_runs("laptop") is a results folder with these runs of the committed one, and the row of real images."""

    def make(protocol):
        source, folder, chosen = ROOT / "results" / protocol, tmp_path / "results" / protocol, SOME[protocol]
        for table in TABLES.values():
            for path in table_files(source, table):
                place = folder / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                if not table.by_run:
                    write_rows(place, table, [row for row in read_rows(path, table) if row["run_id"] in {*chosen, REAL}])
                elif file_of(path)[2] in chosen:
                    shutil.copy(path, place)
        for run_id in chosen:
            for picture in source.glob(f"samples/*-{run_id}.png"):
                (folder / "samples").mkdir(exist_ok=True)
                shutil.copy(picture, folder / "samples")
        write_package(folder)
        return tmp_path / "results"

    return make
