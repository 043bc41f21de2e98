// Arguments of the CPU kernels for products with a weight. Tensors are contiguous; T is float or Half, W is T or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

template <class T, class W>
struct WeightMatMulArguments {
    const T* x; // [rows, depth]
    const W* w; // [depth, columns], or transposed
    T* o;       // [rows, columns]
    size_t rows, depth, columns;
};

// Y + X · A · B, with A and B of each batch row's LoRA adapter.
template <class T>
struct AdapterMatMulArguments {
    const T* y; // [batch, tokens, columns]
    const T* x; // [batch, tokens, depth]
    const T* a; // [adapters, depth, rank]
    const T* b; // [adapters, rank, columns]
    const int64_t* ids; // [batch]: each row's adapter; 0: none
    T* o;       // [batch, tokens, columns]
    size_t batch, tokens, depth, rank, columns;
};

} // namespace lucid
