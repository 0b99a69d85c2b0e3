"""What a claim is: the paper's sentence and number, ours, and the rule between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from suite.evidence.verdicts import Rule, Same, Seen, together


@dataclass(frozen=True)
class Part:
    """One number that a claim asks for, and the rule that judges it."""

    says: str
    seen: Seen
    rule: Rule | Same

    @property
    def verdict(self) -> str:
        return self.rule.verdict(self.seen)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper. title: a few words, unique; says: the claim in one sentence; place, paper: where, and with what number.

    parts: what is asked of the tables, none where these can say nothing; tables: those under results/ that it rests on; needs: what would
    have to be run for a verdict, or for a better one; note: what a reader must know beside the verdict.
    """

    title: str
    says: str
    place: str
    paper: str
    parts: tuple[Part, ...] = ()
    tables: tuple[str, ...] = ()
    needs: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        return together(part.verdict for part in self.parts)

    @property
    def anchor(self) -> str:
        """What GitHub makes of the title as a heading."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")
