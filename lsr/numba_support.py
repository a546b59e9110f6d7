"""One decorator for all kernels (compiled once, cached where that is possible, without the GIL), and prefetching."""

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

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


@intrinsic
def _prefetch_compiled(typing_context: Any, array: Any, position: Any) -> Any:
    """LLVM's prefetch of one element for reading, into all levels of the cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        array_struct = context.make_array(array_type)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, array_type, array_struct, [arguments[1]], wraparound=False)
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0i8"
        )
        builder.call(function, [builder.bitcast(pointer, byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _prefetch_nothing(array: Any, position: int) -> None:
    """Without the JIT there is nothing to fetch ahead of."""


#: ``prefetch(array, position)``: a hint that the element will be read soon.
prefetch: Callable[[Any, int], None] = _prefetch_nothing if numba.config.DISABLE_JIT else _prefetch_compiled


@intrinsic
def _product16_compiled(typing_context: Any, a: Any, b: Any) -> Any:
    """LLVM's product of 16-bit integers: Numba itself widens all integers to 64 bits, an eighth as many a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.mul(*arguments)

    return types.uint16(types.uint16, types.uint16), generate


def _product16_plain(a: int, b: int) -> np.uint16:
    return np.uint16(int(a) * int(b) & 0xFFFF)


#: ``product16(a, b)``: the lower 16 bits of the product of two uint16.
product16: Callable[[Any, Any], Any] = _product16_plain if numba.config.DISABLE_JIT else _product16_compiled


def half_to_float(weight):  # type: ignore[no-untyped-def]  # Numba compares signatures, annotations included
    """A float32 weight as it is; a float16's bits, given as uint16, as the float32 of its value.

    The bits, moved to where float32 has its exponent and mantissa, are the value times 2^-112. Numba has
    no float16 on the CPU.
    """
    if isinstance(weight, np.float32):
        return weight
    return np.uint32(np.uint32(weight) << np.uint32(13)).view(np.float32) * np.float32(2.0**112)


@overload(half_to_float, inline="always")
def _half_to_float_compiled(weight):  # type: ignore[no-untyped-def]
    if isinstance(weight, types.Float):
        return lambda weight: weight
    return lambda weight: np.uint32(np.uint32(weight) << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
