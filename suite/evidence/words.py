"""Words for people: schemes as their papers call them, and the sentences of templates/, filled with numbers of the tables."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

CALLED = {"gain": "fixed gain", "split": "parts of MV-Split,", "featscale": "FeatScale", "layerscale": "LayerScale",
          "rezero": "ReZero", "deepnorm": "DeepNorm", "mvsplit": "MV-Split", "prenorm": "pre-norm",
          "prenorm_scaled": "pre-norm with GPT-2's init", "completep": "CompleteP", "peri_ln": "Peri-LN", "keel": "Keel",
          "lns": "LayerNorm Scaling", "ihc": "iHC", "siamese": "SiameseNorm", "subln": "SubLN", "skipinit": "SkipInit", "admin": "Admin",
          "prores": "ProRes", "mhc": "mHC", "attn_residuals": "attention residuals",
          "deepscalelm": "DeepScaleLM", "adaln": "AdaLN-Zero",
          "sites=attn": "on attention alone", "sites=both": ""}


def called(name: str) -> str:
    """A scheme, with what follows it, in words: "mvsplit sites=attn" is "MV-Split on attention alone"; others stay as they are."""
    scheme, *words = name.split(" ")
    if scheme == "split" and words[-2:] == ["learn=none", "mean=none"]:  # X + beta P F, beta fixed
        return " ".join(["centered fixed gain", *(word.replace("beta=", "g=") for word in words[:-2])])
    return " ".join(filter(None, (CALLED.get(word, word) for word in (scheme, *words))))


def thousandths(rate: float) -> str:
    """A learning rate in thousandths: 5.74e-3 is "5.74"."""
    return f"{1e3 * rate:.3g}" if rate < 1e-3 else f"{1e3 * rate:.2f}"


def render(template: str, **values) -> str:
    """templates/NAME.md.j2 with values in it. Raises jinja2.UndefinedError where it asks for one that is not given."""
    return _TEMPLATES.get_template(f"{template}.md.j2").render(values)


def holds(true: bool, words: str) -> None:
    """Raises ValueError where the tables contradict what a template says of them."""
    if not true:
        raise ValueError(f"the tables do not bear out {words!r}; mend suite/evidence/templates")


_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), undefined=StrictUndefined, trim_blocks=True,
                         lstrip_blocks=True)  # fmt: skip
_TEMPLATES.filters["called"] = called
_TEMPLATES.filters["thousandths"] = thousandths
