// Arguments of the CPU kernel for products with block-quantized weights. Tensors are contiguous; T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

// A 4- or 8-bit weight in blocks, in the layout of the model file. Scales and offsets are both float16 or both float32.
struct QuantizedWeight {
    const uint8_t* numbers;     // [columns, blocks, block_bytes]; with 4 bits, a byte's low half comes first
    const uint8_t* scales;      // [columns, blocks]
    const uint8_t* zero_points; // [columns, zero_bytes], packed like numbers; null: half of the range
    const uint8_t* offsets;     // [blocks, columns], added to scale · (number − half of the range); null: none
    size_t columns, blocks, block_bytes, zero_bytes, scale_bytes;
};

template <class T>
struct QuantizedMatMulArguments {
    const T* x; // [rows, depth]
    QuantizedWeight w;
    const uint8_t* panels; // w as packed by pack_weight; null: each call packs w again
    T* o;                  // [rows, columns]
    size_t rows, depth, bits;
};

} // namespace lucid
