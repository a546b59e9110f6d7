"""The documentation of the user's own Python as a corpus: real text on every machine, no download.

One document per module, class and function of the standard library that has a docstring. Python
modules are parsed, not imported; those compiled from C are imported, since they have no source.
"""

import ast
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lsr.corpus import Corpus
from lsr.records import Document

# Nobody looks for help in these.
LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "__pycache__", "ensurepip",
    "antigravity", "this",
}  # fmt: skip

# Compiled modules that people know under another name.
KNOWN_AS = {"posix": "os", "nt": "os"}


def python_docs() -> Corpus:
    """The standard library's docstrings: id and title are the qualified name, text the docstring."""
    return Corpus(f"the documentation of Python {sys.version.split()[0]}", _documents)


def _documents() -> Iterator[Document]:
    seen: set[str] = set()
    for name, text in (*_from_sources(), *_from_compiled()):
        if text.strip() and name not in seen:
            seen.add(name)
            yield Document(name, inspect.cleandoc(text), name)


def _from_sources() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if LEFT_OUT.intersection(parts) or parts[0].startswith(("config-", "lib-dynload")):
            continue
        names = parts[:-1] if parts[-1] == "__init__" else parts
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # a file that this Python cannot read is not its documentation
        yield from _from_tree(tree, ".".join(names))


def _from_tree(node: Any, name: str) -> Iterator[tuple[str, str]]:
    yield name, ast.get_docstring(node) or ""
    for child in node.body:
        documented = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and not child.name.startswith("__"):
            if isinstance(child, ast.ClassDef):
                yield from _from_tree(child, f"{name}.{child.name}")
            else:
                yield f"{name}.{child.name}", ast.get_docstring(child) or ""


def _from_compiled() -> Iterator[tuple[str, str]]:
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        if name.startswith("_"):
            continue
        spec = importlib.util.find_spec(name)
        compiled = ("built-in", *importlib.machinery.EXTENSION_SUFFIXES)
        if spec is not None and (spec.origin or "").endswith(compiled):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # deprecated modules have docs too
                module = importlib.import_module(name)
            yield from _from_module(module, KNOWN_AS.get(name, name))


def _from_module(module: ModuleType, name: str) -> Iterator[tuple[str, str]]:
    yield name, module.__doc__ or ""
    prefix = "" if name == "builtins" else f"{name}."
    for attribute, value in sorted(vars(module).items()):
        if attribute.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        yield f"{prefix}{attribute}", _docstring(value)
        if inspect.isclass(value):
            for method, member in sorted(vars(value).items()):
                if not method.startswith("_") and callable(member):
                    yield f"{prefix}{attribute}.{method}", _docstring(member)


def _docstring(value: Any) -> str:
    text = getattr(value, "__doc__", None)
    return text if isinstance(text, str) else ""
