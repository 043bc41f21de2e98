#include "operators.h"

#include "causal_attention/onnxruntime.h"
#include "custom_operator.h"
#include "decode_attention/onnxruntime.h"
#include "delta_rule/onnxruntime.h"
#include "expert_matmul/onnxruntime.h"
#include "precondition/onnxruntime.h"
#include "quantized_matmul/onnxruntime.h"
#include "weight_matmul/onnxruntime.h"

#include <atomic>
#include <string>

namespace lucid {
namespace {

#if defined(__x86_64__)
constexpr const Kernels* kBestFirst[] = {&kAvx512, &kAvx2, &kPortable};
#else
constexpr const Kernels* kBestFirst[] = {&kPortable};
#endif

const Kernels* best() {
    for (const Kernels* kernels : kBestFirst)
        if (kernels->supported()) return kernels;
    return &kPortable;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> kernels{best()};
    return kernels;
}

} // namespace

const Kernels& current_kernels() { return *chosen().load(); }

bool select_kernels(const char* name) {
    for (const Kernels* kernels : kBestFirst)
        if (std::string(name) == kernels->name && kernels->supported()) {
            chosen() = kernels;
            return true;
        }
    return false;
}

const std::vector<const OrtCustomOp*>& custom_operators() {
    static const CustomOperator<Precondition<float>> precondition;
    static const CustomOperator<Precondition<Half>> precondition_half;
    static const CustomOperator<CausalAttention<float>> attention;
    static const CustomOperator<CausalAttention<Half>> attention_half;
    static const CustomOperator<DecodeAttention<float>> decode;
    static const CustomOperator<DecodeAttention<Half>> decode_half;
    static const CustomOperator<DecodeAttention<float, float, true>> decode_growing;
    static const CustomOperator<DecodeAttention<Half, Half, true>> decode_growing_half;
    static const CustomOperator<DecodeAttention<float, Half>> decode_from_half;
    static const CustomOperator<DecodeAttention<float, int8_t>> decode_from_int8;
    static const CustomOperator<DecodeAttention<Half, int8_t>> decode_half_from_int8;
    static const CustomOperator<CachedAttention<float>> cached;
    static const CustomOperator<CachedAttention<Half>> cached_half;
    static const CustomOperator<DeltaRule<float>> delta_rule;
    static const CustomOperator<DeltaRule<Half>> delta_rule_half;
    static const CustomOperator<ExpertMatMul<float>> experts;
    static const CustomOperator<ExpertMatMul<Half>> experts_half;
    static const CustomOperator<WeightMatMul<float>> product;
    static const CustomOperator<WeightMatMul<Half>> product_half;
    static const CustomOperator<WeightMatMul<float, Half>> product_by_half;
    static const CustomOperator<WeightMatMul<float, float, true>> transposed;
    static const CustomOperator<WeightMatMul<Half, Half, true>> transposed_half;
    static const CustomOperator<WeightMatMul<float, Half, true>> transposed_by_half;
    static const CustomOperator<QuantizedMatMul<float, float, table::QuantizedMatMul>> quantized;
    static const CustomOperator<QuantizedMatMul<Half, Half, table::QuantizedMatMul>> quantized_half;
    static const CustomOperator<QuantizedMatMul<float, float, table::QuantizedMatMulZeroPoints>> quantized_zeros;
    static const CustomOperator<QuantizedMatMul<Half, Half, table::QuantizedMatMulZeroPoints>> quantized_zeros_half;
    static const CustomOperator<QuantizedMatMul<float, float, table::QuantizedMatMulOffsets>> quantized_offsets;
    static const CustomOperator<QuantizedMatMul<Half, Half, table::QuantizedMatMulOffsets>> quantized_offsets_half;
    static const CustomOperator<QuantizedMatMul<float, Half, table::QuantizedMatMulOffsets>> quantized_by_half;
    static const CustomOperator<QuantizedExpertMatMul<float, float, table::QuantizedExpertMatMul>> quantized_experts;
    static const CustomOperator<QuantizedExpertMatMul<Half, Half, table::QuantizedExpertMatMul>> quantized_experts_half;
    static const CustomOperator<QuantizedExpertMatMul<float, float, table::QuantizedExpertMatMulOffsets>> expert_offsets;
    static const CustomOperator<QuantizedExpertMatMul<Half, Half, table::QuantizedExpertMatMulOffsets>> expert_offsets_half;
    static const CustomOperator<QuantizedExpertMatMul<float, Half, table::QuantizedExpertMatMulOffsets>> experts_by_half;
    static const CustomOperator<AdapterMatMul<float>> adapter;
    static const CustomOperator<AdapterMatMul<Half>> adapter_half;
    static const std::vector<const OrtCustomOp*> all{
        &precondition,     &precondition_half, &attention,        &attention_half,
        &decode,           &decode_half,       &decode_growing,   &decode_growing_half,
        &decode_from_half, &decode_from_int8,  &decode_half_from_int8,
        &cached,           &cached_half,
        &delta_rule,       &delta_rule_half,   &experts,          &experts_half,
        &product,          &product_half,
        &product_by_half,  &transposed,        &transposed_half,  &transposed_by_half,
        &quantized,        &quantized_half,    &quantized_zeros,  &quantized_zeros_half,
        &quantized_offsets, &quantized_offsets_half, &quantized_by_half,
        &quantized_experts, &quantized_experts_half, &expert_offsets, &expert_offsets_half, &experts_by_half,
        &adapter,          &adapter_half};
    return all;
}

} // namespace lucid
