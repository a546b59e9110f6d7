"""What can go wrong, as types. Every message is one sentence: what, where, and what to do."""

import importlib
from types import ModuleType


class LsrError(Exception):
    """Base of all errors that this package raises on purpose."""


class InputError(LsrError, ValueError):
    """The caller's data or option is not acceptable."""


class FormatError(LsrError):
    """A file on disk is damaged, unfinished, or of a format this version does not read."""


class MismatchError(LsrError):
    """Two things that must belong together do not: an index and a query's encoder, say."""


class MissingDependencyError(LsrError, ImportError):
    """An optional dependency is needed for this call."""


class LsrWarning(UserWarning):
    """Something was done that the caller may not expect: a text cut, a document left empty."""


def optional_import(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say in one sentence which extra brings it.

    Raises:
        MissingDependencyError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise MissingDependencyError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which is not installed: "
            f"pip install 'learned-sparse-retrieval[{extra}]'"
        ) from error
