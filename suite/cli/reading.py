"""The verbs that train nothing: what is known, what was seen, what it shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from suite.cli.interrupt import interruptible
from suite.cli.parser import COMMITTED
from suite.cli.training import warn

REPORT = "report.html"  # beside the figures


def show(args) -> int:
    from suite import registry
    from suite.isolation.catalogue import read
    from suite.presets import PROTOCOLS

    catalogue = read(args.plugin)
    print("protocols")
    for p in PROTOCOLS.values():
        print(f"  {p.name:10} v{p.version}  {p.purpose}")
    print("schemes")
    wide = [max(map(len, column)) for column in zip(*((*key, entry.paper) for key, entry in catalogue.entries.items()), strict=True)]
    for (name, arm), entry in sorted(catalogue.entries.items()):
        print(f"  {name:{wide[0]}} {arm:{wide[1]}}  {entry.paper:{wide[2]}}  {registry.format_params(entry, {})}")
    warn(catalogue)
    return 0


def _protocol_folders(results: Path) -> list[Path]:
    return sorted(p.parent for p in results.glob("*/runs.csv"))


def status(args) -> int:
    from collections import Counter

    from suite.records.store import Store

    folders = _protocol_folders(args.results)
    if not folders:
        print(f"{args.results}: no results yet; start with: python -m suite run")
    for folder in folders:
        counts = Counter(row["outcome"] or row["status"] for row in Store(folder).runs())
        print(f"{folder.name:10} {sum(counts.values()):4} runs: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    return 0


def collect(args) -> int:
    from suite.evidence import critical_rates, ranking_table
    from suite.evidence.report import beside
    from suite.presets import PROTOCOLS
    from suite.records.checks import check_folder
    from suite.records.completeness import check_parts
    from suite.records.store import Store

    if args.protocol and args.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {args.protocol!r}; known: {', '.join(PROTOCOLS)}")
    if args.sources:
        from suite.records.gather import gather

        print(f"{gather(args.sources, args.results, args.protocol)} runs gathered into {args.results}", file=sys.stderr)
    folders = [f for f in _protocol_folders(args.results) if args.protocol in (None, f.name)]
    if not folders:
        print(f"{args.results}: no results to collect; start with: python -m suite run", file=sys.stderr)
        return 2
    problems = []
    for folder in folders:
        print(f"{folder.name}: yours ({folder}) beside the committed runs ({COMMITTED.name}/{folder.name})")
        print(beside(folder, COMMITTED / folder.name))
        with Store(folder).still():
            problems += check_folder(folder) + check_parts(folder)
    if not problems and args.results.resolve() != COMMITTED:  # those of the committed results stand with their pages (`report --write`)
        critical_rates.write(args.results)
        ranking_table.write(args.results)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def figures(args) -> int:
    from paper_figures.draw import draw_all
    from paper_figures.gallery import of_drawn

    out = args.out or _pictures(args.results)
    if not args.check:
        drawn, status = draw_all(args.results, out)
        if _protocol_folders(args.results):
            _html(args.results, out / REPORT, of_drawn(drawn))
        return status
    problems = stale(args.results, out)
    print("\n".join([*problems, f"{out}: {len(problems)} problems"]))
    return 1 if problems else 0


def stale(results: Path, out: Path) -> list[str]:
    """The pictures that do not show what the tables give now."""
    from paper_figures.draw import stale

    return stale(results, out)


def differing_tables(results: Path) -> list[str]:
    """The tables of the searches that are not what the runs give."""
    from suite.evidence import critical_rates, ranking_table

    return critical_rates.differs(results) + ranking_table.differs(results)


def differing_pages(results: Path) -> list[str]:
    """The pages that are not what the tables give."""
    from suite.evidence import claims, pages

    return pages.differ(results) + claims.differs(results)


def _pictures(results: Path) -> Path:
    """Where the figures of a results folder go."""
    return COMMITTED.parent / "paper_figures" / "out" if results.resolve() == COMMITTED else results / "figures"


def verify(args) -> int:
    from suite.evidence.verify import verify
    from suite.isolation.catalogue import read
    from suite.isolation.forks import Fork

    catalogue = read([*args.plugin, *_entered(args.results)])
    pictures, committed = _pictures(args.results), args.results.resolve() == COMMITTED
    warn(catalogue)
    drawn = pictures.is_dir() or committed  # a user may not have drawn any yet
    asked = [(differing_tables, args.results), *[(differing_pages, args.results)] * committed, *[(stale, args.results, pictures)] * drawn]
    beside = [Fork() for _ in asked]  # meanwhile, each in a process of its own
    for process, question in zip(beside, asked, strict=True):
        process.ask(*question)
    checked, problems = verify(args.results, catalogue)
    for process in beside:
        problems += process.answer()
        process.close()  # its memory is for what is trained again
    if not checked and not problems:
        raise ValueError(f"{args.results}: no results to verify; start with: python -m suite run")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{args.results}: {checked} runs{' and their pictures' if drawn else ''} checked, {len(problems)} problems")
    if not args.rerun:
        return 1 if problems or not checked else 0
    from suite.evidence.rerun import rerun
    from suite.records.store import format_table

    rows = rerun(args.results, args.rerun, args.seed[0], None, catalogue)
    print(format_table(rows, ("run", "compared", "agrees", "why")))
    return 0 if not problems and all(row["agrees"] for row in rows) else 1


def _entered(results: Path) -> list[Path]:
    """The file of the scheme in a folder that `enter` has made, unless `baselines/` has it by now."""
    from suite import registry

    known = {path.read_bytes() for path in registry.built_in()}
    return [file for file in sorted(results.glob("*.py")) if file.stem == results.resolve().name and file.read_bytes() not in known]


def report(args) -> int:
    from paper_figures.gallery import gallery
    from suite.evidence import critical_rates, pages, ranking_table

    if args.html:
        if not _protocol_folders(args.results):
            raise ValueError(f"{args.results}: no results to report; start with: python -m suite run")
        _html(args.results, args.html, gallery(args.results, _pictures(args.results)))
        return 0
    if not (made := pages.blocks(args.results)):
        raise ValueError(f"{args.results}: no laptop or frontier results to report; start with: python -m suite run")
    if args.write:
        critical_rates.write(args.results)
        ranking_table.write(args.results)
        if args.results.resolve() == COMMITTED:
            pages.write(args.results)
    else:
        print("\n\n".join(made.values()))
    return 0


def _html(results: Path, file: Path, pictures: list) -> None:
    """Write the page of a results folder, with those pictures of its figures."""
    from suite.evidence.html import page

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(results, pictures), encoding="utf-8")
    print(f"{file}: all of it on one page, {file.stat().st_size / 1e6:.1f} MB")


def claims(args) -> int:
    from suite.evidence.claims import reproduction, write

    if not _protocol_folders(args.results):
        raise ValueError(f"{args.results}: no results to judge claims by; start with: python -m suite run")
    print(write(args.results) if args.write else reproduction(args.results), end="\n" * args.write)
    return 0


def detect(args) -> int:
    if args.score:
        return _score(args)
    from suite.detect.judge import judge_logs

    judged = judge_logs(args.file, args.constant_loss, args.column, args.step)
    print("\n".join(json.dumps(found) for _, found in judged))
    if args.plot:
        from paper_figures.detected import draw_detected

        draw_detected(args.plot, judged)
    return 0


def _score(args) -> int:
    from suite.evidence.online import scores

    if args.column or args.step or args.plot or args.constant_loss is not None:
        raise ValueError("--score takes none of --column, --step, --constant-loss and --plot, which are for a log")
    for row in scores(args.score, args.results):
        print(json.dumps(row), flush=True)
    return 0


def bench(args) -> int:
    from paper_figures.draw import draw_folder
    from suite.evidence.bench import FOLDER, bench

    try:
        with interruptible():
            failed = bench(args.results, "quick" if args.quick else "full", args.only)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    drawn, broken = draw_folder(args.results / FOLDER, _pictures(args.results))
    for one in drawn:
        print(f"{one.recipe.title}: {one.file}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed or broken else 0
