// Arguments of the CPU kernel of the delta rule.
//
// B: batch, H: heads, N: new tokens, D: key width, E: value width. Tensors are contiguous; T is float or Half.
#pragma once

#include "shared/cpu_types.h"

namespace lucid {

template <class T>
struct DeltaRuleArguments {
    const T* query;         // [B, H, N, D]
    const T* key;           // [B, H, N, D]
    const T* value;         // [B, H, N, E]
    const float* log_decay; // [B, H, N]
    const T* beta;          // [B, H, N]
    const float* state;     // [B, H, D, E]
    T* output;              // [B, H, N, E]
    float* new_state;       // [B, H, D, E]
    size_t heads, tokens, key_width, value_width; // B · H, N, D, E
    float scale;
};

} // namespace lucid
