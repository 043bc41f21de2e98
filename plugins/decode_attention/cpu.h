// Arguments of decode attention on the CPU.
//
// B batch, H key/value heads, G query heads per key/value head, N new tokens, P past, T = P + N, D head width.
// Tensors are contiguous; T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

// S is the type of the cache: T, Half or int8_t. A number of int8 stands for itself times the scale of its row.
template <class T, class S>
struct DecodeArguments {
    const T* q;       // [B, H·G, N, D]
    const T* k_new;   // [B, H, N, D]
    const T* v_new;   // [B, H, N, D]
    const S* k;       // [B, H, P, D]
    const S* y;       // [B, H, P, D]
    const float* k_scale; // [B, H, P, 1], for int8_t alone, else null
    const float* y_scale; // [B, H, P, 1]
    const bool* mask; // [B, P + N]
    T* o;             // [B, H·G, N, D]
    T* y_new;         // [B, H, N, D], y_step elements from head to head
    size_t y_step;    // N·D or, where y_new is in y_present, (P + N)·D
    S *k_present, *y_present; // [B, H, P + N, D]: the cache with the new rows; null where it is not wanted
    size_t batch, heads, groups, tokens, past, width;
    float epsilon, diagonal; // `diagonal`: 0: L_ii is 1; 1: it is training's

    const T* query(size_t head, size_t group, size_t token) const {
        return q + ((head * groups + group) * tokens + token) * width;
    }
};

} // namespace lucid
