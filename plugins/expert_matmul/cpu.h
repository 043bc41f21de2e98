// Arguments of the CPU kernels for experts' products. Tensors are contiguous; T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

// The range of one expert's rows after sorting all rows by expert.
struct ExpertRows {
    size_t expert, first, rows;
};

template <class T>
struct ExpertMatMulArguments {
    const T* x;               // [rows, depth]
    const T* w;               // [experts, columns, depth]
    T* o;                     // [rows, columns]
    const size_t* order;      // [rows]: rows sorted by expert
    const ExpertRows* chosen; // [chosen_count]: experts that have rows
    size_t chosen_count, rows, depth, columns;
};

// S, the type of scales and offsets, is T or Half.
template <class T, class S>
struct QuantizedExpertArguments {
    const T* x;               // [rows, depth]
    const uint8_t* w;         // [experts, columns, blocks, depth / blocks · bits / 8]
    const S* scales;          // [experts, columns, blocks]
    const S* offsets;         // the same, added to scale · (W − half of the range); null: none
    T* o;                     // [rows, columns]
    const size_t* order;      // as above
    const ExpertRows* chosen;
    size_t chosen_count, rows, depth, columns, blocks, bits;
};

} // namespace lucid
