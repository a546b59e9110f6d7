"""One decorator for all kernels: compiled once, cached where that is possible, without the GIL."""

import logging
from collections.abc import Callable
from typing import Any

import numba

logger = logging.getLogger(__name__)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """``numba.njit(cache=True, nogil=True)``, or without the cache where no folder can be written.

    No ``fastmath``: it reorders sums, and with them ties.
    """
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:  # a read-only container: Numba finds no place for its cache
        logger.info("kernels are compiled anew in this process: %s", error)
        compiled = numba.njit(nogil=True)(function)
    return compiled
