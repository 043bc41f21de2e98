// The operators' CPU kernels: one table of functions per instruction set.
#pragma once

#include "causal_attention/cpu.h"
#include "decode_attention/cpu.h"
#include "delta_rule/cpu.h"
#include "expert_matmul/cpu.h"
#include "precondition/cpu.h"
#include "quantized_matmul/cpu.h"
#include "weight_matmul/cpu.h"

namespace lucid {

template <class T>
struct KernelsOf {
    void (*precondition)(const PreconditionArguments<T>&, const Pool&);
    void (*attention)(const AttentionArguments<T>&, const Pool&);
    void (*decode)(const DecodeArguments<T, T>&, const Pool&);
    void (*decode_half)(const DecodeArguments<T, Half>&, const Pool&);
    void (*decode_int8)(const DecodeArguments<T, int8_t>&, const Pool&);
    void (*delta_rule)(const DeltaRuleArguments<T>&, const Pool&);
    void (*expert_matmul)(const ExpertMatMulArguments<T>&, const Pool&);
    void (*weight_matmul)(const WeightMatMulArguments<T, T>&, const Pool&);
    void (*weight_matmul_half)(const WeightMatMulArguments<T, Half>&, const Pool&);
    void (*weight_matmul_transposed)(const WeightMatMulArguments<T, T>&, const Pool&);
    void (*weight_matmul_transposed_half)(const WeightMatMulArguments<T, Half>&, const Pool&);
    void (*quantized_matmul)(const QuantizedMatMulArguments<T>&, const Pool&);
    void (*quantized_expert_matmul)(const QuantizedExpertArguments<T, T>&, const Pool&);
    void (*quantized_expert_matmul_half)(const QuantizedExpertArguments<T, Half>&, const Pool&);
    void (*adapter_matmul)(const AdapterMatMulArguments<T>&, const Pool&);
};

struct Kernels {
    const char* name;
    bool (*supported)();
    bool (*has_dots)(); // whether the processor can run quantized_matmul: AVX2 or AVX-512 VNNI
    size_t (*pack_weight)(const QuantizedWeight&, uint8_t* panels); // returns their size in bytes; null: writes nothing
    KernelsOf<float> single;
    KernelsOf<Half> half;
};

extern const Kernels kAvx512;
extern const Kernels kAvx2;
extern const Kernels kPortable;

} // namespace lucid
