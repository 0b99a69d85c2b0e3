"""The code of a scheme as it is when some of its parameters have their default values: those are put in and folded away.

So a parameter that is added to a class later changes nothing of the code that its old behaviour had. What cannot be
folded safely is left as it stands, which makes two codes look different that are not, and never the other way round.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence

COMPARE: dict[type, Callable[[object, object], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


def specialised(tree: ast.Module, name: str, values: dict[str, object], around: Sequence[ast.Module] = ()) -> ast.Module:
    """The tree with what class `name` does not need left out, and these parameters of its constructor replaced by constants.

    around: the trees of other files that may hold bases of the class. The tree is changed. A parameter is left alone
    where the constructor does more with it than read it, or keep it under its own name in `self` for its own class to
    read.
    """
    tree.body = _needed(tree, name)
    cls = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    init = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None) if cls else None
    if init is None or not init.args.args:
        return tree
    left = dict(values)
    while now := {key: value for key, value in left.items() if _only_read(key, [tree, *around], cls, init)}:  # folding one may free another
        _drop_arguments(init.args, now)
        _Fold(now, init.args.args[0].arg).visit(cls)
        left = {key: value for key, value in left.items() if key not in now}
    return tree


def _needed(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The statements of a module without the other schemes in it that this one does not name."""
    others = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != name and _is_scheme(node)}
    kept = [node for node in tree.body if node not in others.values()]
    named: set[str] = set()
    while others:
        named |= {node.id for part in kept for node in ast.walk(part) if isinstance(node, ast.Name)}
        more = [others.pop(other) for other in list(others) if other in named]
        if not more:
            break
        kept += more
    return [node for node in tree.body if node in kept]


def _is_scheme(node: ast.ClassDef) -> bool:
    return any(isinstance(word, ast.Call) and _is_name(word.func, "register") for word in node.decorator_list)


def _only_read(key: str, trees: list[ast.Module], cls: ast.ClassDef, init: ast.FunctionDef) -> bool:
    """Whether a parameter is read alone, and `self.key` is kept by one plain assignment and read in its own class alone."""
    me = init.args.args[0].arg
    named = [node for node in ast.walk(init) if isinstance(node, ast.Name) and node.id == key]
    hidden = [node for node in ast.walk(cls) if isinstance(node, ast.arg) and node.arg == key]
    if any(not isinstance(node.ctx, ast.Load) for node in named) or len(hidden) != 1:
        return False
    held = {id(node) for node in ast.walk(cls) if isinstance(node, ast.Attribute) and node.attr == key and _is_name(node.value, me)}
    nodes = [node for tree in trees for node in ast.walk(tree)]
    everywhere = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == key]
    words = [node for node in nodes if isinstance(node, ast.Constant) and node.value == key]  # getattr(self, "key")
    stores = [node for node in everywhere if not isinstance(node.ctx, ast.Load)]
    kept = [node for node in init.body if _keeps(node, key, me)]
    in_class = [node for node in cls.body if isinstance(node, ast.Assign | ast.AnnAssign | ast.FunctionDef) and key in _names_of(node)]
    return not words and not in_class and all(id(node) in held for node in everywhere) and len(stores) == len(kept) <= 1


def _names_of(node: ast.stmt) -> set[str]:
    """The names that a statement of a class body binds."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {word.id for target in targets for word in ast.walk(target) if isinstance(word, ast.Name)}


def _keeps(node: ast.stmt, key: str, me: str) -> bool:
    """Whether a statement is `self.key = key`."""
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and _is_name(node.value, key)):
        return False
    target = node.targets[0]
    return isinstance(target, ast.Attribute) and target.attr == key and _is_name(target.value, me)


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _drop_arguments(args: ast.arguments, values: dict[str, object]) -> None:
    """Take parameters out of a signature, with their defaults."""
    first = len(args.args) - len(args.defaults)
    args.defaults = [d for arg, d in zip(args.args[first:], args.defaults, strict=True) if arg.arg not in values]
    args.args = [arg for arg in args.args if arg.arg not in values]
    own = [(arg, d) for arg, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if arg.arg not in values]
    args.kwonlyargs, args.kw_defaults = [arg for arg, _ in own], [d for _, d in own]


class _Fold(ast.NodeTransformer):
    """Puts the values in, and drops what they decide."""

    def __init__(self, values: dict[str, object], me: str) -> None:
        self.values, self.me, self.inside = values, me, False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outer, self.inside = self.inside, self.inside or node.name == "__init__"
        if self.inside and not outer:
            node.body = [part for part in node.body if not any(_keeps(part, key, self.me) for key in self.values)]
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        self.inside = outer
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(self.values[node.id]) if self.inside and node.id in self.values else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr in self.values and _is_name(node.value, self.me):
            return ast.Constant(self.values[node.attr])
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        fixed = isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant)
        return ast.Constant(not node.operand.value) if fixed else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        try:
            left, (right,), (word,) = ast.literal_eval(node.left), map(ast.literal_eval, node.comparators), node.ops
            return ast.Constant(COMPARE[type(word)](left, right))
        except (ValueError, KeyError, TypeError):
            return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        ends = isinstance(node.op, ast.Or)  # the truth of a value behind which nothing is looked at
        while len(node.values) > 1 and isinstance(node.values[0], ast.Constant):
            if bool(node.values[0].value) is ends:
                return node.values[0]
            node.values.pop(0)
        return node.values[0] if len(node.values) == 1 else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return node if not isinstance(node.test, ast.Constant) else node.body if node.test.value else node.orelse

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        self.generic_visit(node)
        if not isinstance(node.test, ast.Constant):
            node.body = node.body or [ast.Pass()]
            return node
        return node.body if node.test.value else node.orelse
