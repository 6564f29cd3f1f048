"""Types of arguments and results, checked at every call of the package while tests run.

Where an annotation names the shape of an array, jaxtyping checks it; everything else beartype checks by itself, in a
twentieth of the time that both take together.
"""

import ast
import dataclasses
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

PACKAGE = "shortlist"


def checked(thing: Any) -> Any:
    """A function, or a dataclass, whose types are checked when it is called."""
    if isinstance(thing, type):
        if dataclasses.is_dataclass(thing):
            thing.__init__ = checked(thing.__init__)
        return thing
    if not isinstance(thing, FUNCTION) or any(map(has_shapes, thing.__annotations__.values())):
        return jaxtyped(thing, typechecker=beartype)
    return beartype(thing) if thing.__annotations__ else thing


FUNCTION = type(checked)


def has_shapes(annotation: Any) -> bool:
    """Whether a type, or a part of it, is jaxtyping's; of a name in quotes nothing is known, so it may be."""
    if isinstance(annotation, str):
        return True
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(has_shapes(part) for part in get_args(annotation) if not isinstance(part, str))


class Decorate(ast.NodeTransformer):
    """Puts the decorator where jaxtyping would: around functions the innermost, around classes the outermost."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(decorator(node))
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.decorator_list.insert(0, decorator(node))
        self.generic_visit(node)
        return node


def decorator(node: ast.AST) -> ast.expr:
    return ast.copy_location(ast.parse("__import__('checking').checked", mode="eval").body, node)


class CheckedLoader(SourceFileLoader):
    """Loads a module with the decorators, and keeps its code in files of its own."""

    def source_to_code(self, data: Any, path: Any, *, _optimization: int = -1) -> Any:
        tree = ast.fix_missing_locations(Decorate().visit(ast.parse(data, path)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimization)

    def get_data(self, path: str) -> bytes:
        return super().get_data(own(path))

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        super().set_data(own(path), data, _mode=_mode)


def own(path: str) -> str:
    return path.replace(".pyc", ".checked-1.pyc")


class CheckedFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


def check_types() -> None:
    """Check types in every module of the package that is imported from now on."""
    if loaded := [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
        raise RuntimeError(f"{loaded[0]} was imported before its types could be checked")
    sys.meta_path.insert(0, CheckedFinder())
