// All kernels for one instruction set. The including file defines LUCID_*; all symbols but the table are local.
namespace lucid {
namespace {
#include "shared/cpu_vectors.inl"
#include "shared/cpu_products.inl"
#include "shared/cpu_tiles.inl"

#include "block_inverse/cpu.inl"

#include "precondition/cpu.inl"

#include "causal_attention/cpu.inl"

#include "decode_attention/cpu_rows.inl"

#include "decode_attention/cpu_chunks.inl"

#include "decode_attention/cpu.inl"

#include "delta_rule/cpu.inl"

#include "weight_matmul/cpu.inl"

#include "weight_matmul/cpu_transposed.inl"

#include "weight_matmul/cpu_adapter.inl"

#include "expert_matmul/cpu.inl"

#include "expert_matmul/cpu_quantized.inl"

#include "quantized_matmul/cpu_rounding.inl"

#include "quantized_matmul/cpu_panel.inl"

#include "quantized_matmul/cpu_dots.inl"

#include "quantized_matmul/cpu_amx.inl"

#include "quantized_matmul/cpu.inl"
} // namespace

const Kernels LUCID_TABLE = {
    LUCID_NAME,
    [] { return static_cast<bool>(LUCID_SUPPORTED); },
    has_dots,
    pack_weight,
    {precondition<float>, attention<float>, decode<float, float>, decode<float, Half>, decode<float, int8_t>,
     delta_rule<float>, expert_matmul<float>, weight_matmul<float, float>, weight_matmul<float, Half>,
     weight_matmul_transposed<float, float>, weight_matmul_transposed<float, Half>, quantized_matmul<float>,
     quantized_expert_matmul<float, float>, quantized_expert_matmul<float, Half>, adapter_matmul<float>},
    {precondition<Half>, attention<Half>, decode<Half, Half>, decode<Half, Half>, decode<Half, int8_t>,
     delta_rule<Half>, expert_matmul<Half>, weight_matmul<Half, Half>, weight_matmul<Half, Half>,
     weight_matmul_transposed<Half, Half>, weight_matmul_transposed<Half, Half>, quantized_matmul<Half>,
     quantized_expert_matmul<Half, Half>, quantized_expert_matmul<Half, Half>, adapter_matmul<Half>},
};
} // namespace lucid
