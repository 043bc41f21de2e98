// Arguments of a product by a weight in blocks on the CPU. Tensors are contiguous; T is float or Half, S is T or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

template <class T, class S>
struct QuantizedMatMulArguments {
    const T* x;                 // [rows, depth]
    const uint8_t* w;           // [columns, blocks, depth / blocks · bits / 8]; of two 4-bit numbers in a byte the first is in the low bits
    const S* scales;            // [columns, blocks]
    const uint8_t* zero_points; // [columns, blocks · bits / 8 rounded up]; null: half of the range
    const S* offsets;           // [blocks, columns], added to scale · W; null: none
    T* o;                       // [rows, columns]
    size_t rows, depth, columns, blocks, bits;
};

} // namespace lucid
