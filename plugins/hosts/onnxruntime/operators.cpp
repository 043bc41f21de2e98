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

template <class... Operators>
std::vector<const OrtCustomOp*> instances() {
    return {new CustomOperator<Operators>...}; // sessions refer to them, so they are never freed
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
    static const std::vector<const OrtCustomOp*> all = instances<
        Precondition<float>, Precondition<Half>, CausalAttention<float>, CausalAttention<Half>,
        DecodeAttention<float>, DecodeAttention<Half>, DecodeAttention<float, Half>,
        DecodeAttention<float, float, true>, DecodeAttention<Half, Half, true>,
        DecodeAttention<float, int8_t>, DecodeAttention<Half, int8_t>,
        CachedAttention<float>, CachedAttention<Half>, CachedAttention<float, Half>,
        CachedAttention<float, int8_t>, CachedAttention<Half, int8_t>, DeltaRule<float>, DeltaRule<Half>,
        WeightMatMul<float>, WeightMatMul<Half>, WeightMatMul<float, Half>,
        WeightMatMul<float, float, true>, WeightMatMul<Half, Half, true>, WeightMatMul<float, Half, true>,
        QuantizedMatMul<float, float, table::QuantizedMatMul>, QuantizedMatMul<Half, Half, table::QuantizedMatMul>,
        QuantizedMatMul<float, float, table::QuantizedMatMulZeroPoints>,
        QuantizedMatMul<Half, Half, table::QuantizedMatMulZeroPoints>,
        QuantizedMatMul<float, float, table::QuantizedMatMulOffsets>,
        QuantizedMatMul<Half, Half, table::QuantizedMatMulOffsets>,
        QuantizedMatMul<float, Half, table::QuantizedMatMulOffsets>,
        ExpertMatMul<float>, ExpertMatMul<Half>,
        QuantizedExpertMatMul<float, float, table::QuantizedExpertMatMul>,
        QuantizedExpertMatMul<Half, Half, table::QuantizedExpertMatMul>,
        QuantizedExpertMatMul<float, float, table::QuantizedExpertMatMulOffsets>,
        QuantizedExpertMatMul<Half, Half, table::QuantizedExpertMatMulOffsets>,
        QuantizedExpertMatMul<float, Half, table::QuantizedExpertMatMulOffsets>,
        AdapterMatMul<float>, AdapterMatMul<Half>>();
    return all;
}

} // namespace lucid
