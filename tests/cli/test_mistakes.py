"""One line with status 2 for whatever a user can get wrong."""

from pathlib import Path

import pytest
from commands import call, refused


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(("flag", "value", "culprit"), [
    ("--protocol", "smok", "smok"), ("--protocol", "", "unknown protocol"),
    ("--schemes", "plian", "did you mean plain"), ("--schemes", "", "not a name"), ("--schemes", "plain,,rezero", "not a name"),
    ("--schemes", "xyzzy", "known:"), ("--schemes", "../../etc", "unknown scheme"),
    ("--arms", "natural", "natural"), ("--arms", ",", "not a name"),
    ("--params", "beta", "beta"), ("--params", "gamma=1", "gamma=1"), ("--params", "mvsplit:beta=x", "beta='x'"),
    ("--params", "mvsplit:beta=nan", "finite"), ("--params", "deepnorm:beta=inf", "finite"),
    ("--params", "mvsplit:beta=0.123456789", "six significant"), ("--params", "mvsplit:beta=1,beta=2", "given twice"),
    ("--params", "mvsplit:sites=all", "sites='all'"), ("--params", "nosuch:beta=1", "not selected"),
    ("--params", "", "empty"), ("--params", "mvsplit:", "names no parameter"), ("--params", ":beta=1", "not selected"),
    ("--params", "plain:writers=none", "writers=none"), ("--params", "plain:writers=", "writers is empty"),
    ("--params", "plain:writers=std,writers=zero", "given twice"),
    ("--params", "layerscale:gate_lr=.1,gate_lr=1", "gate_lr is given twice"),
    ("--params", "plain:gate_lr=0", "owns no parameters"), ("--params", "layerscale:gate_lr=", "gate_lr is empty"),
    ("--params", "layerscale:gate_lr=-1", "gate_lr is not a number"),
    ("--params", "layerscale:gate_lr=nan", "gate_lr is not a number"), ("--params", "layerscale:gate_lr=0.12345678", "at most six digits"),
    ("--params", "rezero:writers=zero", "refuses zero writers"),
    ("--params", "mvsplit:sites=a\nb", "sites"),
    ("--depths", "0", "0"), ("--depths", "-3", "-3"), ("--depths", "2.5", "2.5"), ("--depths", "two", "two"),
    ("--depths", "2,,3", "''"), ("--depths", "1000000000", "1000000000"), ("--depths", "9" * 5000, "is not"),
    ("--lrs", "0", "0"), ("--lrs", "-1e-3", "-1e-3"), ("--lrs", "nan", "nan"), ("--lrs", "inf", "inf"), ("--lrs", "fast", "fast"),
    ("--lrs", "1e-400", "1e-400"), ("--lrs", "0.00123456789", "six digits"),
    ("--seeds", "-1", "-1"), ("--seeds", "1.5", "1.5"), ("--seeds", str(10**20), str(10**20)), ("--seeds", "", "''"),
    ("--data", "", "empty"), ("--data", "imagefolder:/nowhere", "/nowhere"), ("--data", "parquet:/nowhere.parquet", "/nowhere"),
    ("--data", "digits,size=16", "takes no options"),
    ("--plugin", "nowhere.py", "no such file"), ("--plugin", "", "no such file"),
    ("--shard", "3/2", "3/2"), ("--shard", "0/2", "0/2"), ("--shard", "1", "'1'"), ("--shard", "1/2/3", "1/2/3"),
    ("--shard", "-1/2", "-1/2"), ("--shard", "a/b", "a/b"), ("--shard", "²/³", "²/³"),
    ("--results", "", "empty"),
])
def test_bad_values(capsys, verb, flag, value, culprit):
    selection = [] if flag == "--protocol" else ["--protocol", "smoke"]
    assert culprit in refused(capsys, verb, *selection, f"{flag}={value}")


@pytest.mark.parametrize(("flag", "value"), [("--workers", "0"), ("--workers", "-1"), ("--workers", "two"), ("--workers", "1.5"),
                                             ("--features", "vgg"), ("--executor", "cloud")])
def test_bad_values_of_run_alone(capsys, flag, value):
    assert value in refused(capsys, "run", "--protocol", "smoke", f"{flag}={value}")


@pytest.mark.parametrize("tokens", ["100000", "0", "many", "4097"])
def test_more_tokens_than_a_caption_can_have(capsys, tokens):
    assert tokens in refused(capsys, "encode", "--images", "pictures", "--out", "out", "--tokens", tokens)


def test_more_blocks_than_a_cost_is_worked_out_for(capsys):
    assert "10000 of them at most, not 100000" in refused(capsys, "plan", "--cost", "--depths", "100000", "--protocol", "smoke")


def test_slurm_settings_without_slurm(capsys):
    assert "goes with --executor slurm" in refused(capsys, "run", "--protocol", "smoke", "--slurm", "jobs=2,time=5")


def test_inception_without_weights_is_refused_before_training(capsys, monkeypatch):
    monkeypatch.delenv("INCEPTION_WEIGHTS", raising=False)
    assert "weights" in refused(capsys, "run", "--protocol", "smoke", "--features", "inception")


def test_a_flag_without_its_value(capsys):
    for flag in ("--depths", "--protocol", "--results"):
        assert flag in refused(capsys, "run", flag)


@pytest.mark.parametrize("verb", ["plan", "run", "status", "collect"])
def test_results_that_are_a_file(capsys, verb):
    Path("taken").write_text("x")
    assert "taken is a file" in refused(capsys, verb, "--results", "taken")
    if verb == "run":
        refused(capsys, verb, "--protocol", "smoke", "--results", "taken/below")


def test_damaged_tables_are_named(capsys):
    Path("r/smoke").mkdir(parents=True)
    for content, words in ((b"", "empty"), (b"run_id,protocol\n", "header"), (b"\xff\n", "UTF-8")):
        Path("r/smoke/runs.csv").write_bytes(content)
        for verb in (["plan", "--protocol", "smoke"], ["run", "--protocol", "smoke"], ["status"]):
            message = refused(capsys, *verb, "--results", "r")
            assert "runs.csv" in message and words in message


def test_other_schema_version_is_refused(capsys):
    Path("r/smoke").mkdir(parents=True)
    Path("r/smoke/runs.csv").write_text("x\n")
    Path("r/smoke/datapackage.json").write_text('{"schema_version": "99", "resources": []}')
    assert "schema version '99'" in refused(capsys, "plan", "--protocol", "smoke", "--results", "r")


def test_images_that_do_not_divide_into_patches(capsys, tmp_path):
    import numpy as np
    from PIL import Image

    for i in range(30):
        (tmp_path / "odd" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (7, 9), dtype=np.uint8)).save(tmp_path / "odd" / str(i % 2) / f"{i}.png")
    message = refused(capsys, "run", "--protocol", "smoke", "--data", f"imagefolder:{tmp_path}/odd")
    assert "7 x 7" in message and "size=6" in message
    assert call(capsys, "plan", "--protocol", "smoke", "--data", f"imagefolder:{tmp_path}/odd,size=6")[0] == 0
