// The operators' arithmetic, free of onnxruntime: arguments, and one table of functions per instruction set.
//
// B batch, H key/value heads, G query heads per key/value head, N new tokens, P past, T = P + N, D head width.
// Tensors are contiguous; T is float or Half.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lucid {

// A float16 number as it lies in memory; all arithmetic is in float32.
struct Half {
    uint16_t bits;
};

// Runs task(data, 0) … task(data, count - 1) on the threads of whoever calls a kernel, in any order, and waits.
class Pool {
public:
    virtual ~Pool() = default;
    virtual void run(void (*task)(void* data, size_t index), size_t count, void* data) const = 0;
};

template <class T>
struct PreconditionArguments {
    const T* k;       // [B, H, N, D]
    const T* v;       // [B, H, N, D]
    const T* k_past;  // [B, H, P, D]
    const T* y_past;  // [B, H, P, D]
    const bool* mask; // [B, P + N]
    T* y;             // [B, H, N, D]
    size_t batch, heads, tokens, past, width;
    float epsilon;
};

template <class T>
struct AttentionArguments {
    const T* q;       // [B, H·G, N, D]
    const T* k;       // [B, H, T, D]
    const T* y;       // [B, H, T, D]
    const bool* mask; // [B, T]
    T* o;             // [B, H·G, N, D]
    size_t batch, heads, groups, tokens, total, width;
};

// S is the type of the cache: T, Half or int8_t. A number of int8 stands for itself times the scale of its row.
template <class T, class S>
struct DecodeArguments {
    const T* q;       // [B, H·G, 1, D]
    const T* k_new;   // [B, H, 1, D]
    const T* v_new;   // [B, H, 1, D]
    const S* k;       // [B, H, P, D]
    const S* y;       // [B, H, P, D]
    const float* k_scale; // [B, H, P, 1], for int8_t alone, else null
    const float* y_scale; // [B, H, P, 1]
    const bool* mask; // [B, P + 1]
    T* o;             // [B, H·G, 1, D]
    T* y_new;         // [B, H, 1, D]
    size_t batch, heads, groups, past, width;
    float epsilon;
};

template <class T>
struct KernelsOf {
    void (*precondition)(const PreconditionArguments<T>&, const Pool&);
    void (*attention)(const AttentionArguments<T>&, const Pool&);
    void (*decode)(const DecodeArguments<T, T>&, const Pool&);
    void (*decode_half)(const DecodeArguments<T, Half>&, const Pool&);
    void (*decode_int8)(const DecodeArguments<T, int8_t>&, const Pool&);
};

struct Kernels {
    const char* name;
    bool (*supported)();
    KernelsOf<float> single;
    KernelsOf<Half> half;
};

extern const Kernels kAvx512;
extern const Kernels kAvx2;
extern const Kernels kPortable;

} // namespace lucid
