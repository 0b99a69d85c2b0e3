"""The data package (`datapackage.json`) beside the tables: their columns for any reader, and the version that this one checks."""

from __future__ import annotations

import csv
import json
from functools import lru_cache
from pathlib import Path

from suite.records.layout import pattern, table_files
from suite.records.packed import replace
from suite.records.schema import SCHEMA_VERSION, TABLES, Table
from suite.records.tableerror import TableError

PACKAGE = "datapackage.json"
LICENSE = {"name": "MIT", "path": "https://opensource.org/license/mit", "title": "MIT License"}
SOURCES = [  # what the runs are made of
    {"title": "Mean Mode Screaming: Mean-Variance Split Residuals for 1000-Layer Diffusion Transformers",
     "path": "https://arxiv.org/abs/2605.06169"},
    {"title": "digits: Optical Recognition of Handwritten Digits (test set), as scikit-learn has it", "path": "https://doi.org/10.24432/C50P49"},
]
NO_OWNER = ("quality",)  # its row of real images is of no run, so its run_id is no foreign key


def package_text(folder) -> str:
    """`datapackage.json` (Data Package 2.0) for the tables that exist: the public column dictionary, byte for byte repeatable.

    The path of a table of one file a run is a pattern: a package does not grow with its runs. That of a results folder lists the packages
    of the folders in it as `packages`, a property of our own.
    """
    resources = []
    for table in TABLES.values():
        if not table_files(folder, table):
            continue
        fields = []
        for column in table.columns:
            constraints = {"required": True} if column.required else {}
            if column.enum:
                constraints["enum"] = list(column.enum)
            field = {"name": column.name, "type": column.type, "unit": column.unit, "description": column.meaning}
            fields.append(field | ({"constraints": constraints} if constraints else {}))
        # A primary key may not be empty; the step of quality.csv's real row is.
        required = {column.name for column in table.columns if column.required}
        key = {"primaryKey": list(table.key)} if required >= set(table.key) else {"uniqueKeys": [list(table.key)]}
        if table.name not in NO_OWNER and fields[0]["name"] == "run_id" and table.name != "runs":
            key |= {"foreignKeys": [{"fields": ["run_id"], "reference": {"resource": "runs", "fields": ["run_id"]}}]}
        resources.append({
            "name": table.name, "description": table.meaning, "path": pattern(table), "format": "csv", "mediatype": "text/csv",
            "encoding": "utf-8", **({"compression": "gz"} if table.by_run else {}),
            "schema": {"fields": fields, **key, "missingValues": [""]},
        })  # fmt: skip
    package = {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json", "name": f"screambench-{_named(folder)}", "licenses": [LICENSE],
        "sources": SOURCES,
        "description": "Empty cells were not measured; nan and inf are values. Numbers have six significant digits. A path with * stands "
                       "for all files that fit it: one a run, all with one header, curves/SCHEME-LDEPTH/RUN_ID.csv.gz.",
        "schema_version": SCHEMA_VERSION, "resources": resources,
    }  # fmt: skip
    if inner := _packages(Path(folder)):
        package["packages"] = inner
    return json.dumps(package, indent=1, ensure_ascii=False) + "\n"


def _packages(folder: Path) -> list[dict[str, str]]:
    """The packages of the folders in a results folder; another results folder in it (a user's) is none of them."""
    inner = sorted(path.parent for path in folder.glob(f"*/{PACKAGE}") if not (path.parent / TABLES["critical_rates"].path).exists())
    return [{"name": f"screambench-{_named(one)}", "path": f"{one.name}/{PACKAGE}"} for one in inner]


def _named(folder) -> str:
    """What a package is called: the protocol of its runs, or the first of its tables."""
    runs = Path(folder) / TABLES["runs"].path
    if runs.exists():
        with open(runs, encoding="utf-8", newline="") as file:
            return next(csv.DictReader(file), {}).get("protocol") or "runs"
    return next((table.name for table in TABLES.values() if table_files(folder, table)), "empty").replace("_", "-")


def is_current(folder) -> bool:
    """Whether the package that lies in a folder is that of its tables."""
    path = Path(folder) / PACKAGE
    return path.exists() and path.read_text(encoding="utf-8") == package_text(folder)


def check_package(folder: Path, table: Table | None = None) -> None:
    """Refuse a folder of another schema version, or one whose package lists other columns. No package yet is fine."""
    path = folder / PACKAGE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    version, listed = _told(path, data)
    if version != SCHEMA_VERSION:
        raise TableError(path, f"tables have schema version {version!r}, this code reads {SCHEMA_VERSION!r}",
                         "check out the commit that wrote them, or move the folder aside and run again")
    if table and table.name in listed and listed[table.name] != [(c.name, c.type) for c in table.columns]:
        raise TableError(path, f"columns of {table.name} differ from suite/records/schema.py at the same version",
                         "bump SCHEMA_VERSION, or delete the package if only it is stale")


@lru_cache(maxsize=64)
def _told(path: Path, data: bytes) -> tuple[object, dict[str, list[tuple[str, str]]]]:
    """(version, columns by table) that a package tells. Remembered: whoever reads a table asks."""
    try:
        package = json.loads(data)
        return package["schema_version"], {
            r["name"]: [(f["name"], f["type"]) for f in r["schema"]["fields"]] for r in package["resources"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TableError(path, f"not a data package ({error.__class__.__name__})", "delete it and run `collect`") from None


def write_package(folder) -> None:
    """Write `datapackage.json`; a folder of another schema version is refused, never relabelled."""
    folder = Path(folder)
    check_package(folder)
    replace(folder / PACKAGE, package_text(folder).encode())
