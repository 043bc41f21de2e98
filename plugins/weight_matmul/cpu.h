// Arguments of a product by a weight on the CPU. Tensors are contiguous; T is float or Half, W is T or Half.
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

} // namespace lucid
