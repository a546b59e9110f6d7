"""One decorator for all kernels (compiled once, cached where that is possible, without the GIL), and what Numba lacks.

Each intrinsic has a plain twin, which takes its place without the JIT.
"""

import ctypes
import logging
from collections.abc import Callable, Iterable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

#: Whether kernels are compiled: not with NUMBA_DISABLE_JIT=1.
JIT: bool = not numba.config.DISABLE_JIT


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


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """A pointer to the element that an intrinsic's first two arguments, an array and a position in it, name."""
    kind = signature.args[0]
    array = context.make_array(kind)(context, builder, arguments[0])
    return cgutils.get_item_pointer(context, builder, kind, array, [arguments[1]], wraparound=False)


@intrinsic
def _prefetch_compiled(typing_context: Any, array: Any, position: Any) -> Any:
    """LLVM's prefetch of one element for reading, into all levels of the cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
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
prefetch: Callable[[Any, int], None] = _prefetch_compiled if JIT else _prefetch_nothing


@intrinsic
def _product16_compiled(typing_context: Any, a: Any, b: Any) -> Any:
    """LLVM's product of 16-bit integers: Numba itself widens all integers to 64 bits, an eighth as many a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.mul(*arguments)

    return types.uint16(types.uint16, types.uint16), generate


def _product16_plain(a: int, b: int) -> np.uint16:
    return np.uint16(int(a) * int(b) & 0xFFFF)


#: ``product16(a, b)``: the lower 16 bits of the product of two uint16.
product16: Callable[[Any, Any], Any] = _product16_compiled if JIT else _product16_plain


@intrinsic
def _at_least_compiled(typing_context: Any, array: Any, position: Any, threshold: Any) -> Any:
    """One comparison of vectors, which LLVM makes of no loop that branches on each element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(16), MASK)
        pointer = _element(context, builder, signature, arguments)
        values = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=2)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[2], ir.IntType(32)(0))
        same = ir.Constant(ir.VectorType(ir.IntType(32), MASK), [0] * MASK)
        least = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), same)
        return builder.bitcast(builder.icmp_unsigned(">=", values, least), ir.IntType(MASK))

    return types.int64(array, types.intp, types.uint16), generate


def _at_least_plain(array: Any, position: int, threshold: int) -> int:
    return sum(1 << i for i, value in enumerate(array[position : position + MASK]) if value >= threshold)


#: Elements that one mask tells of.
MASK = 64

#: ``at_least(array, position, threshold)``: which of `MASK` uint16 from the position on are at least the threshold (a
#: uint16), as the bits of an int64, the first one's lowest.
at_least: Callable[[Any, Any, Any], Any] = _at_least_compiled if JIT else _at_least_plain


@intrinsic
def _largest_compiled(typing_context: Any, array: Any, position: Any) -> Any:
    """LLVM's maximum of a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(16), MASK)
        pointer = _element(context, builder, signature, arguments)
        values = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=2)
        name = f"llvm.vector.reduce.umax.v{MASK}i16"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(16), [vector]), name)
        return builder.call(function, [values])

    return types.uint16(array, types.intp), generate


def _largest_plain(array: Any, position: int) -> np.uint16:
    return np.uint16(array[position : position + MASK].max())


#: ``largest(array, position)``: the largest of `MASK` uint16 from the position on.
largest: Callable[[Any, Any], Any] = _largest_compiled if JIT else _largest_plain


@intrinsic
def _lowest_bit_compiled(typing_context: Any, mask: Any) -> Any:
    """LLVM's count of trailing zeros."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate


def _lowest_bit_plain(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


#: ``lowest_bit(mask)``: the position of the lowest bit that is set in an int64 other than 0.
lowest_bit: Callable[[Any], Any] = _lowest_bit_compiled if JIT else _lowest_bit_plain


@intrinsic
def _drop_lowest_compiled(typing_context: Any, mask: Any) -> Any:
    """Numba's own subtraction is undefined for the int64 whose only bit is the highest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.and_(arguments[0], builder.sub(arguments[0], ir.IntType(64)(1)))

    return types.int64(types.int64), generate


def _drop_lowest_plain(mask: int) -> int:
    return mask & (mask - 1)


#: ``drop_lowest(mask)``: an int64 other than 0 without the lowest bit that is set.
drop_lowest: Callable[[Any], Any] = _drop_lowest_compiled if JIT else _drop_lowest_plain


@intrinsic
def _count_bits_compiled(typing_context: Any, mask: Any) -> Any:
    """LLVM's count of ones."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


def _count_bits_plain(mask: int) -> int:
    return mask.bit_count()


#: ``count_bits(mask)``: how many bits are set in an int64.
count_bits: Callable[[Any], Any] = _count_bits_compiled if JIT else _count_bits_plain


@intrinsic
def _pointer_compiled(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _pointer_plain(address: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(int(address))


_pointer: Callable[[Any], Any] = _pointer_compiled if JIT else _pointer_plain


def addresses_of(arrays: Iterable[NDArray[Any]]) -> NDArray[np.int64]:
    """Where arrays are, for `array_at`: address and length of each. They must live as long as they are used."""
    return np.array([(array.ctypes.data, len(array)) for array in arrays], dtype=np.int64).ravel()


@kernel
def array_at(addresses, position, dtype):  # type: ignore[no-untyped-def]
    """The array at that position of what was given to `addresses_of`."""
    return numba.carray(_pointer(addresses[2 * position]), addresses[2 * position + 1], dtype)


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
