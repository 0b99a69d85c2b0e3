"""`python -m suite bench`: the machinery once through, the arithmetic of its targets, and the figure made of its table."""

import time
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from paper_figures import cost, draw, style
from suite import cli
from suite.evidence import bench
from suite.records.package import PACKAGE, package_text
from suite.records.schema import PROVENANCE, TABLES
from suite.records.store import read, read_rows, write_rows

BENCH = TABLES["bench"]
MADE = {name: "1" if name == "threads" else f"some {name}" for name in PROVENANCE}


def row(phase="step", scheme="plain", depth=100, ms=None, **more):
    """A row of the table, measured if it has a time."""
    sizes = {"width": 32, "image_tokens": 16, "caption_tokens": 4, "batch": 16, "dtype": "fp32"}
    measured = {"status": "measured", "median_ms": ms, "iqr_ms": ms and ms / 20, "rounds": 5, "hardware": "a processor"}
    missed = {"status": "not measured", "reason": "no CUDA device"}
    return {"phase": phase, "scheme": scheme, "depth": depth, "variant": "suite", "setting": "digits", "device": "cpu", "workers": 1,
            "replicas": 1, "started": "2026-01-02T03:04:05+00:00"} | sizes | MADE | (missed if ms is None else measured) | more  # fmt: skip


def whole():
    """Every target just reached: a reference of 4 ms a block, and steps of 1.52 ms a block at most."""
    rows = []
    for depth in (10, 100, 1000):
        for i, scheme in enumerate(("plain", "layerscale", "rezero", "deepnorm", "mvsplit")):
            each = (1.34, 1.36, 1.38, 1.40, 1.52)[i] if depth < 1000 else (1.34, 1.36, 1.38, 1.40, 1.4)[i]
            over = {} if scheme == "plain" else {"over_plain": 1 + i / 30}
            rows.append(row(scheme=scheme, depth=depth, ms=each * depth, peak_mib=500 + depth * (1 + i / 10), **over))
            rows.append(row(scheme=scheme, depth=depth, ms=4.0 * depth, variant="reference", peak_mib=400 + 2 * depth))
    rows += [row("first_step_cold", depth=10, ms=9_000.0), row("first_step_warm", depth=25, ms=4_000.0)]
    rows += [row("worker_start", "mvsplit", 100, ms=5_900.0), row("step", "mvsplit", 1000, ms=1e4, setting="wide", peak_mib=4096)]
    rows += [row("sweep", "plain,mvsplit", None, ms=18_600.0, evaluation_share=0.4), row("sweep", "plain,mvsplit", None, ms=1e4, workers=2)]
    return rows + [row(device="cuda", depth=1000)]


def table_of(tmp_path, rows):
    write_rows(tmp_path / "bench" / BENCH.path, BENCH, rows)
    return read(tmp_path / "bench", "bench")


def held(tmp_path, rows):
    return {target["figure"]: (target["measured"], target["held"]) for target in bench.targets(table_of(tmp_path, rows))}


def gpu():
    """Every target of a GPU just reached; more replicas than the best are slower again."""
    card = {"device": "cuda", "hardware": "a card"}
    rows = [row(depth=depth, ms=ms, replicas=n, **card) for depth, n, ms in
            [(100, 1, 30.0), (100, 120, 0.6), (100, 240, 0.7), (400, 30, 2.52), (400, 1, 100.0)]]  # fmt: skip
    rows += [row("heldout", depth=100, ms=20.0, replicas=120, **card), row("heldout", depth=100, ms=400.0, **card)]
    rows += [row("sample", depth=100, ms=2000 / 256, replicas=120, **card)]
    return rows


@pytest.mark.parametrize(("place", "change"), [
    (None, {}), (0, {"phase": "step", "replicas": 120, "median_ms": 0.71}), (1, {"depth": 400, "replicas": 30, "median_ms": 2.53}),
    (2, {"phase": "heldout", "replicas": 120, "median_ms": 20.1}), (3, {"phase": "sample", "median_ms": 8.0}),
])  # fmt: skip
def test_targets_of_a_gpu(tmp_path, place, change):
    """Each is met at its bound and by no more; the best number of replicas is the fastest."""
    rows, key = gpu(), {k: v for k, v in change.items() if k in ("phase", "depth", "replicas", "variant")}
    for one in rows:
        if change and all(one[k] == v for k, v in key.items()):
            one |= change
    found = bench.gpu_targets(table_of(tmp_path, rows))
    assert [target["held"] for target in found] == ["no" if i == place else "yes" for i in range(4)]
    if place is None:
        assert found[0]["measured"] == "0.6 (120 runs as one)" and found[1]["measured"] == "4.2 (30 runs as one)"
    assert {target["held"] for target in bench.gpu_targets(table_of(tmp_path, whole()))} == {"not measured"}


# ---- once through, with real measurements

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The smallest bench there is: a step of two eager blocks, ours and the reference's, and of another scheme in turn with ours."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark measures nothing in a process that has it
        start = time.perf_counter()
        assert bench.bench(results, "tiny") == []
        return results, time.perf_counter() - start


@pytest.mark.slow
def test_measures_times_and_memory(tiny):
    results, wall = tiny
    table = read(results / "bench", "bench")
    cpu = table[table["device"] == "cpu"]
    assert list(cpu["variant"]) == ["suite", "reference", "suite"] and (cpu["status"] == "measured").all()
    assert list(cpu["over_plain"].notna()) == [True, False, False] and cpu["over_plain"].iloc[0] > 0.1
    assert (cpu["median_ms"] > 0.1).all() and (cpu["median_ms"] * cpu["rounds"] / 2).sum() < 1e3 * wall
    assert cpu["peak_mib"].between(100, 3000).all() and (cpu["threads"] == 1).all()  # an interpreter with torch, one thread
    assert cpu["torch"].eq(torch.__version__).all() and cpu["hardware"].ne("").all()
    cuda = table[table["device"] == "cuda"]
    assert len(cuda) == 2
    if not torch.cuda.is_available():
        assert (cuda["status"] == "not measured").all() and (cuda["reason"] == "no CUDA device").all() and cuda["median_ms"].isna().all()


@pytest.mark.slow
def test_its_folder_is_no_protocol(tiny, capsys, tmp_path):
    results, _ = tiny
    folder = results / "bench"
    assert (folder / PACKAGE).read_text() == package_text(folder) and '"bench.csv"' in package_text(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["bench.csv", PACKAGE]
    assert cli.main(["status", "--results", str(results)]) == 0
    assert "no results yet" in capsys.readouterr().out
    assert cli.main(["collect", "--results", str(results)]) == 2 and cli.main(["verify", "--results", str(results)]) == 2
    assert cli.main(["figures", "--results", str(results), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bench-cost.png", "bench-cost.pdf"}


# ---- from pytest-benchmark to rows

def report(**info):
    case = {name: value for name, value in row().items() if name not in ("status", "reason", "started", *PROVENANCE)}
    stats = {"median": 0.6, "iqr": 0.03, "rounds": 7}
    return {"benchmarks": [{"extra_info": case | info, "stats": stats}], "provenance": MADE,
            "missed": [case | {"depth": 1000, "status": "failed", "reason": "ChildError: exit status -9: no message"}]}  # fmt: skip


def test_rows_of_a_report():
    measured, failed = bench.rows_of(report(divisor=20, peak_mib=512.0, other="dropped"), "now")
    assert measured["median_ms"] == pytest.approx(30) and measured["iqr_ms"] == pytest.approx(1.5) and measured["rounds"] == 7
    assert measured["status"] == "measured" and measured["started"] == "now" and measured["commit"] == "some commit"
    assert "other" not in measured and "divisor" not in measured
    assert failed["status"] == "failed" and "median_ms" not in failed
    assert len(bench.rows_of(report(), "now")) == 1  # a benchmark that broke after its first round is among the missed only


def test_a_failed_benchmark_is_a_row_and_an_exit_status(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "measure", lambda size, only="": report(divisor=1))
    assert cli.main(["bench", "--quick", "--results", str(tmp_path)]) == 1
    assert "failed: step suite plain 1000: ChildError: exit status -9: no message" in capsys.readouterr().err.splitlines()
    assert [line["status"] for line in read_rows(tmp_path / "bench" / "bench.csv", BENCH)] == ["measured", "failed"]


@pytest.mark.parametrize(("name", "value", "words"), [
    ("FILES", Path("/nowhere"), "clone"), ("find_spec", lambda name: None, "pytest-benchmark")])
def test_where_it_cannot_run_it_says_so(monkeypatch, capsys, tmp_path, name, value, words):
    monkeypatch.setattr(bench, name, value)
    assert cli.main(["bench", "--results", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


# ---- targets

def test_targets_that_are_just_reached(tmp_path):
    found = held(tmp_path, whole())
    assert {verdict for _, verdict in found.values()} == {"yes"} and len(found) == 12
    assert found["step at depth 100, MV-Split, over the reference's"][0] == "0.38 (mvsplit)"
    assert found["step at depth 100, slowest scheme over the fastest"][0] == "1.13 (mvsplit)"  # 1 + 4 / 30
    assert found["runs per hour of two workers over one"][0] == "1.86"
    assert found["peak memory at depth 1000, worst scheme, GiB"][0] == "1.86 (mvsplit)"  # (500 + 1400) / 1024


@pytest.mark.parametrize(("change", "lost"), [
    ({"scheme": "mvsplit", "depth": 100, "ms": 153.0}, {"step at depth 100, MV-Split, over the reference's",
                                                        "step at depth 100, worst scheme, over its reference's"}),
    ({"scheme": "rezero", "depth": 100, "ms": 138.0, "over_plain": 1.16}, {"step at depth 100, slowest scheme over the fastest"}),
    ({"scheme": "rezero", "depth": 1000, "ms": 1450.0}, {"step at depth 1000, worst scheme, over its reference's",
                                                         "step at depth 1000 over step at depth 100, worst scheme"}),
    ({"scheme": "plain", "depth": 1000, "ms": 1340.0, "peak_mib": 3072}, {"peak memory at depth 1000, worst scheme, GiB"}),
    ({"phase": "first_step_cold", "depth": 10, "ms": 10_100.0}, {"first step with an empty compile cache, worst scheme, s"}),
    ({"phase": "first_step_warm", "depth": 25, "ms": 4_600.0}, {"the same in a new process at another depth, over it"}),
    ({"phase": "worker_start", "scheme": "mvsplit", "ms": 6_100.0}, {"start of a worker to its first step, s"}),
    ({"phase": "sweep", "scheme": "plain,mvsplit", "depth": None, "ms": 10_100.0, "workers": 2}, {"runs per hour of two workers over one"}),
    ({"phase": "sweep", "scheme": "plain,mvsplit", "depth": None, "ms": 18_600.0, "evaluation_share": 0.51},
     {"evaluation over training, laptop protocol"}),
    ({"scheme": "mvsplit", "depth": 1000, "ms": 1e4, "setting": "wide", "peak_mib": 4100},
     {"peak memory of 1000 blocks, width 64, 64+4 tokens, batch 32, GiB"}),
])  # fmt: skip
def test_each_target_is_lost_by_its_own_number(tmp_path, change, lost):
    changed = row(**change)
    rows = [changed if all(old[name] == changed[name] for name in BENCH.key) else old for old in whole()]
    assert changed in rows
    assert {figure for figure, (_, verdict) in held(tmp_path, rows).items() if verdict == "no"} == lost


def test_what_was_not_measured_is_neither_held_nor_lost(tmp_path):
    assert {verdict for _, verdict in held(tmp_path, [row(device="cuda")]).values()} == {"not measured"}
    failed = [row(scheme="mvsplit", ms=150.0), row(scheme="mvsplit", variant="reference", status="failed", reason="no")]
    assert held(tmp_path, failed)["step at depth 100, MV-Split, over the reference's"] == ("-", "not measured")


def test_mvsplit_over_plain(tmp_path):
    rows = bench.over_plain(table_of(tmp_path, whole()))
    assert [r["depth"] for r in rows] == [10, 100, 1000]
    assert rows[1]["plain_ms"] == 134 and rows[1]["mvsplit_ms"] == 152 and rows[1]["time"] == "+13 %"  # 1 + 4 / 30, not 152 / 134
    assert rows[2]["memory"] == "+27 %"  # 1900 / 1500


# ---- the figure

@pytest.fixture
def page(tmp_path):
    table_of(tmp_path, whole())
    return cost.cost.draw(tmp_path / "bench")


def test_figure_shows_every_scheme_and_what_mvsplit_costs(page):
    words = {text.get_text() for text in page.findobj(Text)}
    assert {"plain", "LayerScale", "ReZero", "DeepNorm", "MV-Split", "MV-Split over plain, one step", "+13 %", "+27 %"} <= words
    caption = style.caption_of(page)
    for part in ("a processor", "some torch", "some commit", "2026-01-02", "1 thread ", "GPU: not measured"):
        assert part in caption
    time_axis = page.subfigs[0].axes[0]
    heights = [line.get_ydata() for line in time_axis.lines if len(line.get_ydata()) == 3]
    plain = next(y for y in heights if y[1] == pytest.approx(1.34))  # ms a block at the three depths
    ratio = 1 + 4 / 30  # of MV-Split, timed in turn with plain
    assert any(list(y) == pytest.approx([ratio * each for each in plain], rel=1e-5) for y in heights)
    assert "152" not in words and "152.0" not in words  # MV-Split's own milliseconds are not to be held against plain's


def test_figure_stays_on_its_page(page):
    canvas = FigureCanvasAgg(page)
    canvas.draw()
    (width, height), box = page.get_size_inches(), page.get_tightbbox(canvas.get_renderer())
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    assert all(text.get_fontsize() >= 7 for text in page.findobj(Text) if text.get_text())


@pytest.mark.parametrize("name", ["cpu_model", "started", "commit"])
def test_timings_of_two_machines_are_not_drawn_together(tmp_path, capsys, name):
    table_of(tmp_path, [row(ms=1.0), row(scheme="mvsplit", ms=1.2, **{name: "another"})])
    assert draw.draw_all(tmp_path, tmp_path / "out").status == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench-cost: not drawn: ") and name in line and not (tmp_path / "out").exists()


def test_a_part_measured_anew_leaves_the_rest_of_the_table(tmp_path, monkeypatch):
    """--only: rows of the same name are replaced, the others keep their text, and their `started`."""
    old = [row(ms=40.0), row(ms=30.0, replicas=4), row("audit", "mvsplit", ms=5.0)]
    table_of(tmp_path, old)
    before = read_rows(tmp_path / "bench" / BENCH.path, BENCH)
    new = {key: cell for key, cell in row(ms=20.0, replicas=4).items() if key not in ("started", *PROVENANCE)}
    report = {"benchmarks": [], "missed": [new], "provenance": MADE}
    monkeypatch.setattr(bench, "measure", lambda size, only: report)
    assert bench.bench(tmp_path, only="step and 100") == []
    after = read_rows(tmp_path / "bench" / BENCH.path, BENCH)
    assert len(after) == 3 and [r for r in after if r["replicas"] != "4"] == [r for r in before if r["replicas"] != "4"]
    assert [r["median_ms"] for r in after if r["replicas"] == "4"] == ["20"]
    bench.bench(tmp_path)
    assert len(read_rows(tmp_path / "bench" / BENCH.path, BENCH)) == 1
