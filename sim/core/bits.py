"""Operations on words that Numba does not offer: positions of bits, and eight words compared at a time.

Each has a plain-Python twin, which runs with NUMBA_DISABLE_JIT; a test compares the two.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from sim.core.views import element_address

#: Words that one comparison takes.
LANES = 8
#: Tokens that one call of a token sum takes.
SUM_LANES = 16

_WORD = ir.IntType(64)
_FLAG = ir.IntType(1)
_MASK = 2**64 - 1


def _plain_leading_zeros(x: np.uint64) -> int:
    """Zero bits above the highest set bit; 64 for 0."""
    return 64 - int(x).bit_length()


def _plain_trailing_zeros(x: np.uint64) -> int:
    """Zero bits below the lowest set bit; 64 for 0."""
    word = int(x)
    return (word & -word).bit_length() - 1 if word else 64


def _plain_equal_words(array: np.ndarray, index: int, word: np.uint64) -> int:
    """Bit j of the result: array[index + j] is the word, for j below LANES; indices are not checked."""
    return sum(1 << j for j in range(LANES) if array[index + j] == word)


def _plain_equal_high_halves(array: np.ndarray, index: int, word: np.uint64) -> int:
    """Bit j of the result: array[index + j] and the word have the same upper 32 bits, for j below LANES."""
    return sum(1 << j for j in range(LANES) if (int(array[index + j]) ^ int(word)) & _MASK < 2**32)


def _lower_count(name: str) -> Any:
    def lower(_typing: Any, word: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(_WORD, [_WORD, _FLAG])
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            # the flag 0: a word of zeros has 64 of them
            return builder.call(function, [arguments[0], ir.Constant(_FLAG, 0)])

        return types.int64(types.uint64), generate

    return lower


def _lower_compare(drop: int) -> Any:
    """Comparison of LANES words of a 1-D array of uint64, without their lowest ``drop`` bits."""

    def lower(_typing: Any, array: Any, _index: Any, _word: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(_WORD, LANES)
            address = element_address(context, builder, signature.args[0], arguments[0], [arguments[1]])
            address = builder.bitcast(address, vector.as_pointer())
            words = builder.load(address, align=8)
            wanted = _splat(builder, vector, arguments[2])
            if drop:
                shift = ir.Constant(vector, [drop] * LANES)
                words, wanted = builder.lshr(words, shift), builder.lshr(wanted, shift)
            bits = builder.bitcast(builder.icmp_unsigned("==", words, wanted), ir.IntType(LANES))
            return builder.zext(bits, _WORD)

        return types.int64(array, types.intp, types.uint64), generate

    return lower


def _splat(builder: Any, vector: Any, word: Any) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), word, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def _lower_token_sum(step: int, factor: int) -> Any:
    steps = [(j + 1) * step & _MASK for j in range(SUM_LANES)]

    def lower(_typing: Any, weights: Any, _index: Any, _x: Any, _vocab: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(_WORD, SUM_LANES)
            address = element_address(context, builder, signature.args[0], arguments[0], [arguments[1]])
            address = builder.bitcast(address, vector.as_pointer())
            half = ir.Constant(vector, [32] * SUM_LANES)
            y = builder.add(_splat(builder, vector, arguments[2]), ir.Constant(vector, steps))
            y = builder.mul(builder.xor(y, builder.lshr(y, half)), ir.Constant(vector, [factor] * SUM_LANES))
            # without their upper halves the words are multiplied in one instruction
            vocab = builder.and_(arguments[3], ir.Constant(_WORD, 2**32 - 1))
            y = builder.mul(builder.lshr(y, half), _splat(builder, vector, vocab))
            y = builder.mul(builder.lshr(y, half), builder.load(address, align=8))
            kind = ir.FunctionType(_WORD, [vector])
            total = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.add.v16i64")
            return builder.call(total, [y])

        return types.uint64(weights, types.intp, types.uint64, types.uint64), generate

    return lower


def _plain_token_sum(step: int, factor: int) -> Any:
    def token_sum(weights: np.ndarray, index: int, x: np.uint64, vocab: np.uint64) -> np.uint64:
        total = 0
        for j in range(SUM_LANES):
            y = (int(x) + (j + 1) * step) & _MASK
            y = ((y ^ y >> 32) * factor & _MASK) >> 32
            total += (y * int(vocab) >> 32) * int(weights[index + j])
        return np.uint64(total & _MASK)

    return token_sum


def make_token_sum(step: int, factor: int) -> Any:
    """Function (weights, index, x, vocab) of SUM_LANES tokens: the sum of weights[index + j] times token j.

    Token j is the upper half of (y ^ y >> 32) * factor for y = x + (j + 1) * step, scaled to ``vocab``, which
    is below 2**32; arithmetic modulo 2**64.
    """
    if numba.config.DISABLE_JIT:
        return _plain_token_sum(step, factor)
    return intrinsic(_lower_token_sum(step, factor))


if numba.config.DISABLE_JIT:
    leading_zeros = _plain_leading_zeros
    trailing_zeros = _plain_trailing_zeros
    equal_words = _plain_equal_words
    equal_high_halves = _plain_equal_high_halves
else:
    leading_zeros = intrinsic(_lower_count("llvm.ctlz.i64"))
    trailing_zeros = intrinsic(_lower_count("llvm.cttz.i64"))
    equal_words = intrinsic(_lower_compare(0))
    equal_high_halves = intrinsic(_lower_compare(32))
