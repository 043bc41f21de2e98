// Arguments of causal attention on the CPU.
//
// B batch, H key/value heads, G query heads per key/value head, N new tokens, P past, T = P + N, D head width.
// Tensors are contiguous; the type T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

template <class T>
struct AttentionArguments {
    const T* q;       // [B, H·G, N, D]
    const T* k;       // [B, H, T, D]
    const T* y;       // [B, H, T, D]
    const bool* mask; // [B, T]
    T* o;             // [B, H·G, N, D]
    size_t batch, heads, groups, tokens, total, width;
};

} // namespace lucid
