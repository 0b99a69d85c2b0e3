"""The shell around the suite: every mistake is one line before the set-up. No test here sets anything up."""

import os
import shutil
import subprocess
import sys

import pytest

from suite.environment import ROOT


@pytest.fixture
def clone(tmp_path):
    """What the script needs of a fresh clone, without a .venv."""
    for name in ("run_all.sh", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "suite", tmp_path / "suite", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    return tmp_path


def call(clone, *words, path=None, **env):
    """(status, lines on standard error) of ./run_all.sh; PYTHON is this one unless told."""
    given = {"PYTHON": sys.executable} | env
    done = subprocess.run([clone / "run_all.sh", *words], capture_output=True, text=True, timeout=60,
                          env=os.environ | given | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {}))
    return done.returncode, done.stderr.splitlines(), done.stdout


def script(path, text) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return str(path)


def nothing_was_set_up(clone) -> bool:
    return not (clone / ".venv").exists() and not (clone / "results").exists()


@pytest.mark.parametrize("name", ["run_all.sh", ".ci/run"])
def test_syntax(name):
    assert subprocess.run(["bash", "-n", ROOT / name]).returncode == 0
    assert os.access(ROOT / name, os.X_OK)


@pytest.mark.parametrize(("words", "culprit"), [
    (["--protocol", "labtop"], "unknown protocol 'labtop'; known: smoke, laptop"), (["--protocol=labtop"], "unknown protocol 'labtop'"),
    (["--protocol"], "--protocol"), (["tests"], "unknown word 'tests'"), (["Figures"], "unknown word 'Figures'"),
    (["--depths", "0"], "--depths"), (["--lrs=-1"], "--lrs"), (["--shard", "3/2"], "--shard"), (["--seeds", "-1"], "--seeds"),
    (["--colour", "red"], "--colour"), (["--results="], "--results"), (["-x"], "unknown word '-x'"),
])
def test_mistakes_are_found_before_the_set_up(clone, words, culprit):
    status, err, out = call(clone, *words)
    assert (status, len(err), out) == (2, 1, "") and culprit in err[0]
    assert nothing_was_set_up(clone)


def test_help_needs_no_set_up(clone):
    for word in ("--help", "-h"):
        status, err, out = call(clone, word)
        assert status == 0 and not err and "./run_all.sh test" in out and "--retry-failed" in out and "set -euo" not in out
    assert nothing_was_set_up(clone)


OLD = 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi\n'


def test_an_old_python_is_one_line(clone, tmp_path):
    old = script(tmp_path / "bin" / "oldpython", OLD)
    for python in (old, "/nowhere/python"):
        status, err, out = call(clone, PYTHON=python)
        assert status == 1 and len(err) == 1 and "needs Python 3.11 or newer" in err[0] and not out
        assert ("Python 3.9.2" in err[0]) == (python == old)
    assert nothing_was_set_up(clone)


def test_a_newer_python_is_found_behind_an_old_one(clone, tmp_path):
    script(tmp_path / "bin" / "python3", OLD)
    script(tmp_path / "bin" / "python3.14", f'exec {sys.executable} "$@"\n')
    env = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    done = subprocess.run([clone / "run_all.sh", "--protocol", "labtop"], capture_output=True, text=True,
                          env=env | {"PATH": f"{tmp_path}/bin:{env['PATH']}"})
    assert done.returncode == 2 and "unknown protocol" in done.stderr


def test_no_space_is_one_line(clone, tmp_path):
    script(tmp_path / "bin" / "df", "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo /dev/x 9 9 204800 99% /\n")
    status, err, _ = call(clone, path=tmp_path / "bin")
    assert status == 1 and len(err) == 1 and "3 GB" in err[0] and "200 MB" in err[0] and nothing_was_set_up(clone)


PIP = """
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"; cp "$0" "$3/bin/python"
elif [ "$1 $2" = "-m pip" ]; then
    {pip}
else
    exec {python} "$@"
fi
"""


@pytest.mark.parametrize(("pip", "words"), [
    ("echo 'WARNING: Retrying (Retry(total=4)) after connection broken by NewConnectionError'; exit 1", "index cannot be reached"),
    ("echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'; exit 1", "disk is full"),
    ("echo 'ERROR: No matching distribution found for torch==9'; exit 1", "No matching distribution found for torch==9"),
])
def test_a_failed_installation_is_one_line_and_not_taken_for_done(clone, tmp_path, pip, words):
    python = script(tmp_path / "bin" / "fake", PIP.format(pip=pip, python=sys.executable))
    for _ in range(2):  # the second call must not believe in the half-made .venv
        status, err, _ = call(clone, PYTHON=python)
        assert status == 1 and len(err) == 2 and "setting up" in err[0] and words in err[1]
    assert not (clone / "results").exists()


def test_statuses_of_the_steps_are_passed_on(clone, tmp_path):
    """run 0 and 1 go on to collect and figures, anything above stops; what went wrong anywhere is told at the end."""
    log = tmp_path / "log"
    body = f"""
if [ "$1 $2" = "-m suite" ]; then echo "${{@:3}}" >>{log}
case "$3" in run) exit ${{RUN:-0}};; figures) exit ${{FIGURES:-0}};; esac; exit 0; fi
"""
    fake = script(tmp_path / "bin" / "fake", body + PIP.format(pip=":", python=sys.executable))
    for env, status, steps in (({}, 0, 3), ({"RUN": "1"}, 1, 3), ({"RUN": "130"}, 130, 1), ({"FIGURES": "3"}, 1, 3)):
        log.unlink(missing_ok=True)
        found, err, _ = call(clone, "--protocol", "smoke", "--results", "here", PYTHON=fake, **env)
        lines = log.read_text().splitlines()
        assert found == status and len(lines) == steps, (err, lines)
        assert lines[0] == "run --protocol smoke --results here"
        assert lines[1:] in ([], ["collect --results here --protocol smoke", "figures --results here"])


def test_style_and_imports_come_before_the_tests_and_all_takes_the_slow_ones(clone, tmp_path):
    log = tmp_path / "log"
    body = f"""
if [ "$1 $2" = "-m ruff" ]; then exit ${{RUFF:-0}}; fi
if [ "$1 $2" = "-m pytest" ]; then printf '<%s>' "${{@:3}}" >>{log}; exit 0; fi
"""
    checker = r"printf '#!/bin/bash\nexit ${IMPORTS:-0}\n' >.venv/bin/lint-imports; chmod +x .venv/bin/lint-imports"
    fake = script(tmp_path / "bin" / "fake", body + PIP.format(pip=checker, python=sys.executable))
    for words, env, status, said in (
        (["test"], {}, 0, "<loadfile>"), (["test", "all"], {}, 0, "<-m><slow or not slow>"), (["test", "-k", "a b"], {}, 0, "<-k><a b>"),
        (["test"], {"RUFF": "1"}, 1, ""), (["test"], {"IMPORTS": "1"}, 1, ""),
    ):  # fmt: skip
        log.unlink(missing_ok=True)
        found, err, _ = call(clone, *words, PYTHON=fake, **env)
        tested = log.read_text() if log.exists() else ""
        assert found == status and tested.endswith(said) and bool(tested) == (status == 0), (words, env, err)
