// Arguments of decode attention on the CPU.
//
// B batch, H key/value heads, G query heads per key/value head, N new tokens, P past, D head width.
// Tensors are contiguous; T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

// S is the type of the cache: T, Half or int8_t. An int8 cache has one scale per row. If `solves` is false, the kernel
// computes standard attention: y holds V, and y_new is null.
template <class T, class S>
struct DecodeArguments {
    const T* q;       // [B, H·G, N, D]
    const T* k_new;   // [B, H, N, D]
    const T* v_new;   // [B, H, N, D]
    const S* k;       // [B, H, P, D]
    const S* y;       // [B, H, P, D]
    const float* k_scale; // [B, H, P, 1] for int8_t, else null
    const float* y_scale; // [B, H, P, 1]
    const bool* mask; // [B, P + N]
    T* o;             // [B, H·G, N, D]
    T* y_new;         // [B, H, N, D], with y_step elements between heads
    size_t y_step;    // N·D, or (P + N)·D if y_new is a part of y_present
    S *k_present, *y_present; // [B, H, P + N, D]: the cache with the new rows; null if not requested
    size_t batch, heads, groups, tokens, past, width;
    float epsilon, diagonal; // diagonal: 0 for L_ii = 1, 1 for the training diagonal
    bool solves;

    size_t solved() const { return solves ? tokens : 0; } // number of new keys whose scores are needed

    const T* query(size_t head, size_t group, size_t token) const {
        return q + ((head * groups + group) * tokens + token) * width;
    }
};

} // namespace lucid
