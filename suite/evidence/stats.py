"""stub"""
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
import numpy as np
from suite.sweep import posterior as P
LEVEL = 0.95
@dataclass(frozen=True)
class Critical:
    kind: str
    rate: float | None
    low: float
    high: float
    n: int
    seeds: int
    falls: tuple[float, ...] = ()
    crossed: float | None = None
    @property
    def middle(self): return self.rate
    def __str__(self):
        return f"{self.rate:.2e} [{self.low:.2e}, {self.high:.2e}]"
def critical(lr, seed, bad, share=.5):
    return _critical(tuple(np.asarray(lr).tolist()), tuple(np.asarray(seed).tolist()), tuple(np.asarray(bad).tolist()), share)
@cache
def _weights(lr, seed, bad): return P.posterior(lr, seed, bad)
@cache
def _critical(lr, seed, bad, share):
    w=_weights(lr,seed,bad)
    q=np.exp(P.quantiles(P.levels(share)+0*w, w, (.025,.5,.975)))
    lr_=np.array(lr); bad_=np.array(bad); rates=np.unique(lr_); sh=np.array([bad_[lr_==r].mean() for r in rates])
    falls=tuple(float(r) for i,r in enumerate(rates) if i and sh[i]<sh[:i].max())
    crossed=next((float(r) for r,s in zip(rates,sh) if s>=.5),None)
    kind="fit" if rates[0]<=q[1]<=rates[-1] else "above" if q[1]>rates[-1] else "below"
    return Critical(kind,float(q[1]),float(q[0]),float(q[2]),len(lr),len(set(seed)),falls,crossed)
def ratio(one,other):
    a,b=critical(*one),critical(*other)
    r=a.rate/b.rate; s=np.hypot(np.log(a.high/a.low),np.log(b.high/b.low))/2
    from scipy.stats import norm
    p=2*norm.sf(abs(np.log(r))/(s/1.96))
    return r,r*np.exp(-s),r*np.exp(s),float(p)
def upward(lr, seed, bad):
    lr, seed, bad = np.asarray(lr, dtype=float), np.asarray(seed), np.asarray(bad, dtype=bool)
    rates=np.unique(lr); alive=[r for r in rates if not bad[lr==r].any()]
    keep = lr >= (alive[0] if alive else rates[0])
    return lr[keep], seed[keep], bad[keep]
def holm(p):
    order, out, worst = np.argsort(p), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i])); out[i] = worst
    return out
