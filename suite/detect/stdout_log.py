"""From what a training program prints to columns of text, by one grammar for all of them.

A line is numbers, each with the words before it: its name ("lm loss: 2.31E+00 |", "'loss': nan", "Loss is 2.3", "[Epoch 1]"). A name that
counts ("iter", "num_updates") is a clock; two numbers with a slash between them ("[50/5808]") count as well. A clock on
a line of its own ("Epoch 3/10") holds for the lines below. Of all lines with a loss of training the most frequent kind
is the log: what trainers print most often is what they train on.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from suite.detect.names import BATCH, CACHED, EPOCH, EVALUATION, RANK, is_clock, is_loss, key
from suite.detect.numbers import LogError
from suite.detect.sheet import Sheet, quoted

LEAST = 2  # lines with a loss that make a log of a text; numbers beside a loss by which its line is known without it
CLOCKED = 3  # times as many lines may name a loss and no step before one that names both is not taken for the log
LONGEST = 2000  # characters of a line that are looked at; a longer one is data that somebody printed
_OVERDRAWN = re.compile(r"\r|\x08+")  # a bar is drawn over itself
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x07\x0e-\x1f]")  # colours, moves of the cursor
# Dates, times of day, durations, places in code and rates of bars: numbers that name nothing. A | ends what stands before them
_TIMES = re.compile(
    r"\[?\d{1,2}/\d{1,2}(?:/\d{2,4})?,?\s+\d\d?:\d\d(?::\d\d)?(?:[.,]\d+)?|"
    r"\[?\d{4}[-/]\d\d[-/]\d\d(?:[ T]+\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?)?(?:Z|\s?[+-]\d\d:?\d\d)?:?|"
    r"\d+ days?,? +|(?<![\d.])\d+:\d\d(?::\d\d)?(?:[.,]\d+)?(?![\d/])|\[?[IWE]\d{4,8} \S+\s+\d+ [\w.]+:\d+\]|"
    r"[\w./$-]+\.(?:py|cc|cpp|scala|java)(?:[: ]\d+)+|\S*\$:\d+ - |\(pid=\d+\)|"
    r"[\d.?]+\s?(?:s/it|it/s|ms/step|us/step|s/step|[a-z]+/s(?:ec)?)\b")
_RANKS = re.compile(
    r"^\s*(?:\[\d+,(?P<mpi>\d+)\]<std\w+>:?|\[?(?:rank|default|gpu|worker)[ _:=]?(?P<named>\d+)\]?:?(?=[\s\[]))", re.IGNORECASE)
# "3: iteration 10 ..." of srun, or "300: loss 2.31", "[43] train-logloss:0.33", "1328 Loss : 0.05"
_NUMBERED = re.compile(r"^\s*(?:(?P<marked>\d{1,9}):|\[(?P<held>\d{1,9})\]|(?P<bare>\d{1,9}))\s+(?=\S*[A-Za-z\[])")
_INDEXED = re.compile(r"(?P<name>[A-Za-z][\w/]*loss\w*|loss)\s*[\[(]\s*(?P<n>\d{1,9})\s*[\])]\s*(?=[:=])", re.IGNORECASE)  # "loss[ 10 ]: 2"
_TUTORIAL = re.compile(r"^\s*\[\s*(\d+),\s*(\d+)\]\s*(?=\D)")  # "[1,  2000] loss: 2.2", PyTorch's first example
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<open>(?:tensor|np\.float\d+)\()?(?P<n>[-+]?(?:1\.#(?:QNAN|SNAN|IND|INF)\w*|(?:{_DIGITS})(?:[eE][-+]?\d+)?|"
    rf"(?:nan|inf(?:inity)?)(?:\(ind\))?(?![\w/])))(?:\s*/\s*(?P<of>\d[\d,]*)(?![\d.]*[a-zA-Z]))?(?:%|[a-zA-Zµ]+(?:/[a-zA-Z]+)*(?![\w=:]))?",
    re.IGNORECASE)
_NOT_FINITE = re.compile(r"[-+]?(?:nan|inf)", re.IGNORECASE)
_VALUE_FOLLOWS = re.compile(r"[:=\[(,'\"]\s*$|(?:loss|norm|is)\s+$", re.IGNORECASE)  # before "nan", which is also a word ("nan iterations")
_APART = re.compile(r"[,;|:{}()\[\]<>=\t\"']|\s{2,}|\.\s|\s-+\s|^\s*-+\s")
_UNIT = re.compile(r"\s*\([^()]*\)\s*$")  # of a name: "elapsed time (ms)", "Epoch(train)"
_LOSS_AT = re.compile(r"(?P<loss>.*loss.*?)\s+(?:at|after|for|on|in)\s+(?P<clock>\w[\w ]*)", re.IGNORECASE)  # "Loss at step 100: 2.3"
_LEVELS = re.compile(r"^(?:(?:INFO|WARN|WARNING|DEBUG|ERROR|NOTICE)\b[\s:-]*)+", re.IGNORECASE)
_UNITS = re.compile(r"\s?(epoch|batch|iter|step|update)(?:e?s)?\b(?!/)", re.IGNORECASE)  # of a number without a name: "1epoch:1-100batch"
_DECIMAL_COMMA = re.compile(r"loss\W{1,5}[-+]?\d+,\d{1,2}(?!\d)|[:=\s][-+]?0,\d", re.IGNORECASE)
_EITHER = re.compile(r"loss\W{1,5}[-+]?[1-9]\d{0,2},\d{3}(?![\d.])", re.IGNORECASE)  # 2,310: thousands, or a decimal comma
_COMMA = re.compile(r"(?<=\d),(?=\d)")
_NAMES_A_LOSS = re.compile(r"loss|\bcost|nll|xent|cross.?entropy|objective", re.IGNORECASE)  # what every name of names.LOSS holds
_COUNTS = re.compile(r"epoch|step|iter|update|batch")
_COUNTS_OTHERS = re.compile(r"\b(per|of|nan|skipped|time|each|every|max|total|last|best|warmup|eta)\b", re.IGNORECASE)

Kind = tuple[tuple[str, ...], tuple[str, ...]]  # what lines of one kind share: the losses and the clocks that they name


@dataclass
class Line:
    """A line that was understood: its clocks and its other numbers by name, which rank printed it, and whether it evaluates."""

    number: int
    text: str
    clocks: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    rank: str = ""
    evaluates: bool = False

    def losses(self, column: str | None) -> tuple[str, ...]:
        """The losses that it names; of a given column that alone."""
        return tuple(sorted(name for name in self.values if (is_loss(name) if column is None else key(name) == key(column))))


def read_printed(text: str, where: str, column: str | None = None) -> Sheet | None:
    """The training lines of printed output as a sheet; None where fewer than LEAST lines name a loss.

    column: the name of the loss, where the user gave it. Raises LogError where a comma may mean two things.
    """
    lines, strays, rest = _with_a_loss(text, column)
    if not any(not line.evaluates for line, _ in lines):  # "test" in the name of a run stands before all of them
        for line, _ in lines:
            line.evaluates = False
    strays += [line for line, _ in lines if line.evaluates]
    lines = [(line, kind) for line, kind in lines if not line.evaluates]
    if len(lines) < LEAST:
        return None
    counts = Counter(kind for _, kind in lines)
    most = max(counts.values())
    usual = max(counts, key=lambda kind: (bool(kind[1]) and CLOCKED * counts[kind] >= most, counts[kind]))
    n = counts[usual]
    kept = [line for line, kind in lines if kind == usual]
    if 2 * sum(_EITHER.search(line.text) is not None for line in kept) > n:
        raise LogError(f"{where}, line {kept[0].number}: the comma may stand between thousands or mark decimals: {quoted(kept[0].text)}; "
                       "write decimals with a point")  # fmt: skip
    notes = [f"read as printed output: {n} lines such as line {kept[0].number}: {quoted(kept[0].text)}"]
    others = [line for line, kind in lines if kind != usual]
    if lost := _without_their_loss(kept, usual, [*others, *(line for line in strays if not line.evaluates), *rest]):
        kept = sorted([*kept, *lost], key=lambda line: line.number)
        others, strays = ([line for line in left if line not in lost] for left in (others, strays))
    for left, what in ((others, "name other losses, or another clock"), (strays, "name a loss, but none of training")):
        if left:
            first = min(left, key=lambda line: line.number)
            notes.append(f"{len(left)} lines {what}, and are left out, the first on line {first.number}: {quoted(first.text)}")
    kept = _of_one_rank(kept, usual[0], notes)
    clocks = _usual([line.clocks for line in kept])
    if lost := [line for line in kept if any(name not in line.clocks for name in clocks)]:
        notes.append(f"{len(lost)} lines do not say how far training is, and are left out, the first on line {lost[0].number}: "
                     f"{quoted(lost[0].text)}")  # fmt: skip
        kept = [line for line in kept if all(name in line.clocks for name in clocks)]
    names = [*clocks, *dict.fromkeys(name for line in kept for name in line.values if name not in clocks)]
    rows = [[line.clocks[name] if name in clocks else line.values.get(name) for name in names] for line in kept]
    return Sheet(where, names, rows, [line.number for line in kept], whole=text.endswith(("\n", "\r")), notes=notes)


def _without_their_loss(kept: list[Line], usual: Kind, others: list[Line]) -> list[Line]:
    """Lines that have all numbers of the usual ones but a loss: some trainers leave it out where it is no number. Theirs is empty."""
    losses, clocks = usual
    counts = Counter(name for line in kept for name in line.values)
    beside = {name for name, n in counts.items() if n == len(kept) and name not in losses}
    lost = [line for line in others if len(beside) >= LEAST and {*clocks} <= line.clocks.keys() and beside <= line.values.keys()]
    for line in lost:
        line.values = dict.fromkeys(losses, "") | line.values
    return lost


def _with_a_loss(text: str, column: str | None) -> tuple[list[tuple[Line, Kind]], list[Line], list[Line]]:
    """The lines that name a loss, each with its kind, those that only mention one, and others with a clock and numbers."""
    lines, strays, rest = [], [], []
    held: dict[str, str] = {}  # clocks of lines that have nothing else
    word = _NAMES_A_LOSS if column is None else re.compile(re.escape(re.split(r"[\s_-]", column)[0]), re.IGNORECASE)
    commas = _DECIMAL_COMMA.search(text) is not None
    for number, raw in enumerate(text.split("\n"), 1):
        for part in _OVERDRAWN.split(raw):
            if commas:
                part = _COMMA.sub(".", part)
            low = part.lower()
            if not word.search(part):
                if len(part) < LONGEST and _COUNTS.search(low):
                    line = parse(part, number)
                    if line.clocks and line.values:
                        rest.append(line)
                    elif line.clocks:
                        held |= {name: value for name, value in line.clocks.items() if name != "batch" or name in low}
                continue
            line = parse(part, number)
            if kind := line.losses(column):
                own = any(name != "epoch" for name in line.clocks)
                line.clocks = {name: value for name, value in held.items() if name == "epoch" or not own} | line.clocks
                lines.append((line, (kind, tuple(line.clocks))))
                held = {name: value for name, value in held.items() if name == "epoch"}
            elif line.values:
                strays.append(line)
    return lines, strays, rest


def not_understood(text: str, where: str) -> LogError:
    """Why a text is no log, with the line that looks most like one."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    number, line = next(((n, line) for n, line in lines if "loss" in line.lower() and re.search(r"\d", line)), lines[0])
    if not _NAMES_A_LOSS.search(text) and re.search(r"\d", text):
        return LogError(f"{where}, line {number}: no loss is named in it: {quoted(line)}; say with --column NAME which number is to be "
                        "judged")  # fmt: skip
    return LogError(f"{where}, line {number}: not understood: {quoted(line)}; give a CSV with a header such as step,loss, JSON, or lines "
                    "such as 'step 100: loss 2.31'")  # fmt: skip


def parse(text: str, number: int = 0) -> Line:
    """One line. Whatever it holds, it is understood or has no numbers; nothing is raised."""
    line = Line(number, text)
    left = _CONTROL.sub("", text)[:LONGEST]
    while found := _RANKS.match(left):
        line.rank, left = found["mpi"] or found["named"], left[found.end():]
    left = _TIMES.sub(" | ", left)
    if found := _TUTORIAL.match(left):
        line.clocks |= {"epoch": found[1], "batch": found[2]}
        left = left[found.end():]
    numbered = _NUMBERED.match(left)
    if numbered:
        left = left[numbered.end():]
    left = _INDEXED.sub(r"step \g<n> | \g<name> ", left)
    end, waiting, seen = 0, "", []
    for found in _NUMBER.finditer(left):
        before = left[end:found.start()]
        if _NOT_FINITE.match(found["n"]) and not _VALUE_FOLLOWS.search(before):
            continue
        end, value = found.end(), found["n"].replace(",", "")
        seen.append(before)
        name = label(before)
        if key(name) in ("train", "training") and not line.clocks and (found["of"] or left[end:].lstrip().startswith("[")):
            name = "epoch"  # "Train: [0/300][10/1251]", "Train: 0 [10/1251 (1%)]"
        if asked := _LOSS_AT.fullmatch(name):
            waiting, name = label(asked["loss"]), asked["clock"]
        if left[found.end() - 1] == "%":  # how much of a bar is done
            continue
        if not name and (unit := _UNITS.match(left, found.end("n"))):
            name, value = unit[1], value.lstrip("-")
        elif found["of"] and not name and not line.values:
            name = "batch" if "batch" not in line.clocks else ""
        elif not name and waiting:
            name, waiting = waiting, ""
        if (clock := _clock(name)) and value.replace(".", "").isdigit():
            line.clocks.setdefault(clock, value)
        elif key(name) in RANK:
            line.rank = value
        elif name and name not in line.values:
            line.values[name] = value
            if is_loss(name) and not line.evaluates:
                line.evaluates = _evaluates("|".join(seen))
    if numbered:
        if not any(name != "epoch" for name in line.clocks):
            line.clocks["step"] = numbered[numbered.lastgroup]
        elif not numbered["bare"]:
            line.rank = line.rank or numbered[numbered.lastgroup]
    return line


@lru_cache(maxsize=CACHED)
def label(before: str) -> str:
    """The name of a number, from what stands before it; "" where nothing does."""
    text = before[-80:].rstrip(" \t:='\"([|<>*#")
    if text.endswith(")"):
        text = _UNIT.sub("", text)
    text = re.sub(r"\s+(?:is|was|now)$", "", text)
    name = _APART.split(text)[-1].strip(" -.*#_~/\\>%")
    name = _LEVELS.sub("", name)
    return name if re.search("[^\\W\\d_]", name) else ""


@lru_cache(maxsize=CACHED)
def _evaluates(words: str) -> bool:
    """Whether the words before a loss say that it is one of an evaluation."""
    return bool(EVALUATION.search(key(words).replace("|", " ")))


@lru_cache(maxsize=CACHED)
def _clock(name: str) -> str:
    """The name of a clock as the sheet has it; "" for any other name."""
    low = key(name)
    if low in EPOCH:
        return "epoch"
    if low in BATCH:
        return "batch"
    if is_clock(low):
        return "step" if low in ("step", "steps") else low
    words = low.split("_")  # "Finished iteration 7", "Train Epoch: 1"
    if len(words) < 2 or not is_clock(words[-1]) or _COUNTS_OTHERS.search(" ".join(words).replace("of epoch", "")):
        return ""
    return _clock(words[-1])


def _usual(clocks: list[dict[str, str]]) -> list[str]:
    """The clocks that most lines have."""
    counts = Counter(name for one in clocks for name in one)
    return [name for name, n in counts.items() if 2 * n > len(clocks)]


def _of_one_rank(lines: list[Line], losses: tuple[str, ...], notes: list[str]) -> list[Line]:
    """The lines of the lowest rank; where another rank's loss is no number and its is, that one counts."""
    ranks = {line.rank for line in lines}
    if len(ranks) < 2 or "" in ranks:
        return lines
    first = min(ranks, key=int)
    broken = {tuple(line.clocks.items()): line for line in lines
              if any(_NOT_FINITE.match(line.values.get(name) or "") for name in losses) and line.rank != first}  # fmt: skip
    notes.append(f"{len(ranks)} ranks print: rank {first} is judged, and what is no number on any")
    return [broken.get(tuple(line.clocks.items()), line) for line in lines if line.rank == first]
