// Arguments of a product by a weight in blocks on the CPU. Tensors are contiguous; T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

// A weight in blocks of 4 or 8 bits, as models store it. Scales and offsets are both float16 or both float32.
struct QuantizedWeight {
    const uint8_t* numbers;     // [columns, blocks, block_bytes]; of two 4-bit numbers in a byte the first is in the low bits
    const uint8_t* scales;      // [columns, blocks]
    const uint8_t* zero_points; // [columns, zero_bytes], packed like numbers; null: half of the range
    const uint8_t* offsets;     // [blocks, columns], added to scale · (number − half of the range); null: none
    size_t columns, blocks, block_bytes, zero_bytes, scale_bytes;
};

template <class T>
struct QuantizedMatMulArguments {
    const T* x; // [rows, depth]
    QuantizedWeight w;
    const uint8_t* panels; // w as pack_weight writes it; null: each product packs it anew
    T* o;                  // [rows, columns]
    size_t rows, depth, bits;
};

} // namespace lucid
