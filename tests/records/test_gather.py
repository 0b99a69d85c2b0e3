"""Tables of several folders put into one: the same bytes as one folder, nothing doubled, nothing lost, sources untouched."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from suite import cli
from suite.records.checks import check_folder
from suite.records.gather import gather
from suite.records.store import TABLES, RowsByRun, Store, TableError, write_rows
from suite.sweep.execute import execute
from suite.sweep.plan import Selection, make_plan

SELECTION = {"protocol": "smoke", "schemes": ("plain", "mvsplit"), "depths": (2, 3)}


def train(results: Path, shard=(1, 1)) -> None:
    """What `run` does, in this process."""
    for run in make_plan(Selection(**SELECTION, shard=shard)):
        Store(results / "smoke").add(execute(run, results, "digits"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a results folder but working files, by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not {".work", ".lock"} & set(p.relative_to(folder).parts)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same plan in one folder, and in two shards."""
    top = tmp_path_factory.mktemp("trained")
    train(top / "whole")
    train(top / "one", (1, 2))
    train(top / "two", (2, 2))
    return top


@pytest.fixture
def folders(trained, tmp_path):
    for name in ("whole", "one", "two"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def edit(folder: Path, run_id: str, **cells) -> None:
    """Replace cells of a run in runs.csv as if it had come out so: table well formed, digest its own."""
    store, parts = Store(folder / "smoke"), RowsByRun(folder / "smoke")
    rows = [row | (cells if row["run_id"] == run_id else {}) for row in store.runs()]
    rows = [row | {"rows_digest": store.digest(row, parts.written(row))} for row in rows]
    write_rows(folder / "smoke" / "runs.csv", TABLES["runs"], rows)


def test_two_shards_give_what_one_folder_holds(folders, capsys):
    before = [content(folders / name) for name in ("one", "two")]
    status = cli.main(["collect", "--from", str(folders / "two"), str(folders / "one"), "--results", str(folders / "gathered")])
    out, err = capsys.readouterr()
    assert status == 0 and err == f"4 runs gathered into {folders / 'gathered'}\n" and "mvsplit" in out
    gathered, whole = content(folders / "gathered"), content(folders / "whole")
    assert gathered.keys() == whole.keys() and sum(name.endswith(".png") for name in whole) == 4
    assert [name for name in whole if gathered[name] != whole[name]] == ["smoke/throughput.csv"]
    assert not check_folder(folders / "gathered" / "smoke")
    assert [content(folders / name) for name in ("one", "two")] == before


def test_what_is_there_already_stays_and_is_not_doubled(folders):
    assert gather([folders / "one", folders / "two"], folders / "whole") == 0
    assert gather([folders / "whole", folders / "one"], folders / "gathered") == 4
    assert gather([folders / "one"], folders / "gathered") == 0
    assert content(folders / "gathered") == content(folders / "whole")


def test_a_run_that_differs_is_refused_and_nothing_is_written(folders):
    run_id = Store(folders / "one" / "smoke").runs()[0]["run_id"]
    edit(folders / "one", run_id, commit="0123456789ab")
    for target in ("whole", "fresh"):  # against the target, and between two sources
        before = content(folders / "whole")
        sources = [folders / "whole", folders / "one"] if target == "fresh" else [folders / "two", folders / "one"]
        with pytest.raises(TableError) as error:
            gather(sources, folders / target)
        words = str(error.value)
        assert run_id in words and str(folders / "whole") in words and str(folders / "one") in words and "commit" in words
        assert "\n" not in words and content(folders / "whole") == before
    assert not (folders / "fresh").exists()


def test_a_finished_run_goes_before_one_that_broke(folders):
    row = Store(folders / "one" / "smoke").runs()[0]
    names = ("run_id", "protocol", "protocol_version", "scheme", "arm", "params", "writers", "depth", "lr", "seed", "data")
    broke = {name: row[name] for name in names} | {"status": "oom", "reason": "first"}
    Store(folders / "broke" / "smoke").add({"run": broke})
    Store(folders / "later" / "smoke").add({"run": broke | {"reason": "second"}})
    assert gather([folders / "broke"], folders / "whole") == 0
    assert gather([folders / "broke", folders / "later"], folders / "gathered") == 1
    assert [r["reason"] for r in Store(folders / "gathered" / "smoke").runs()] == ["second"]
    assert gather([folders / "one"], folders / "gathered") == 2
    assert {r["status"] for r in Store(folders / "gathered" / "smoke").runs()} == {"done"}
    assert {k: v for k, v in content(folders / "gathered").items() if "throughput" not in k} == \
        {k: v for k, v in content(folders / "one").items() if "throughput" not in k}


def test_a_run_without_its_row_is_left_out_and_a_false_curve_refused(folders):
    """A row in runs.csv is what commits a run: a sweep may be at work in the source."""
    store = Store(folders / "one" / "smoke")
    (table,) = (store.folder / "curves" / "plain-L2").iterdir()
    data = table.read_bytes()
    table.write_bytes(gzip.compress(b"".join(gzip.decompress(data).splitlines(keepends=True)[:-1])))
    with pytest.raises(TableError, match="differs from its digest"):
        gather([folders / "one"], folders / "gathered")
    table.write_bytes(data)
    left = [row for row in store.runs() if (row["scheme"], row["depth"]) != ("plain", "2")]
    write_rows(store.folder / "runs.csv", TABLES["runs"], left)
    assert gather([folders / "one"], folders / "gathered") == len(left) == 1
    assert not check_folder(folders / "gathered" / "smoke")


def test_what_cannot_be_gathered_is_one_line(folders, capsys):
    package = folders / "two" / "smoke" / "datapackage.json"
    package.write_text(json.dumps(json.loads(package.read_text()) | {"schema_version": "99"}))
    cases = [
        (["--from", folders / "nowhere"], "nowhere"), (["--from", folders / "one" / "smoke"], "no PROTOCOL/runs.csv"),
        (["--from", folders / "one", "--protocol", "laptop"], "no results of laptop"),
        (["--from", folders / "one", folders / "two"], "schema version '99'"),
    ]  # fmt: skip
    for words, culprit in cases:
        assert cli.main(["collect", *map(str, words), "--results", str(folders / "gathered")]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith("error: ") and len(err.splitlines()) == 1 and culprit in err
        assert not (folders / "gathered").exists()
    assert cli.main(["collect", "--from", str(folders / "one"), "--results", str(folders / "one")]) == 2
    assert "is --results itself" in capsys.readouterr().err
