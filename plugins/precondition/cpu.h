// Arguments of the preconditioner on the CPU.
//
// B batch, H key/value heads, N new tokens, P past, D head width.
// Tensors are contiguous; T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

template <class T>
struct PreconditionArguments {
    const T* k;       // [B, H, N, D]
    const T* v;       // [B, H, N, D]
    const T* k_past;  // [B, H, P, D]
    const T* y_past;  // [B, H, P, D]
    const bool* mask; // [B, P + N]
    T* y;             // [B, H, N, D]
    size_t batch, heads, tokens, past, width;
    float epsilon, diagonal; // diagonal: 0 for L_ii = 1, 1 for the training diagonal
};

} // namespace lucid
