// Made from plugins/table.py. After a change: python -m lucid_deploy.plugins.hosts.operators_header
// In and Out hold the positions of an operator's tensors; kCount is how many there are.
#pragma once

namespace lucid::table {

constexpr char const* kDomain = "ai.lucid";
constexpr int kVersion = 1;
constexpr char const* kVersionText = "1";
constexpr char const* kEpsilon = "epsilon";
constexpr char const* kDiagonal = "diagonal";
constexpr char const* kScale = "scale";

struct Precondition {
    static constexpr char const* kName = "Precondition";
    struct In {
        enum : int { K, V, K_past, Y_past, mask, kCount };
    };
    struct Out {
        enum : int { Y, kCount };
    };
};

struct DecodeAttention {
    static constexpr char const* kName = "DecodeAttention";
    struct In {
        enum : int { Q, K_new, V_new, K, Y, mask, kCount };
    };
    struct Out {
        enum : int { O, Y_new, kCount };
    };
};

struct DecodeAttentionFloat8 {
    static constexpr char const* kName = "DecodeAttentionFloat8";
    struct In {
        enum : int { Q, K_new, V_new, K, Y, K_scale, Y_scale, mask, kCount };
    };
    struct Out {
        enum : int { O, Y_new, kCount };
    };
};

struct DeltaRule {
    static constexpr char const* kName = "DeltaRule";
    struct In {
        enum : int { query, key, value, log_decay, beta, state, kCount };
    };
    struct Out {
        enum : int { output, new_state, kCount };
    };
};

struct CausalAttention {
    static constexpr char const* kName = "CausalAttention";
    struct In {
        enum : int { Q, K, Y, mask, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct DecodeAttentionFloat16 {
    static constexpr char const* kName = "DecodeAttentionFloat16";
    struct In {
        enum : int { Q, K_new, V_new, K, Y, mask, kCount };
    };
    struct Out {
        enum : int { O, Y_new, kCount };
    };
};

struct DecodeAttentionInt8 {
    static constexpr char const* kName = "DecodeAttentionInt8";
    struct In {
        enum : int { Q, K_new, V_new, K, Y, K_scale, Y_scale, mask, kCount };
    };
    struct Out {
        enum : int { O, Y_new, kCount };
    };
};

struct ExpertMatMul {
    static constexpr char const* kName = "ExpertMatMul";
    struct In {
        enum : int { X, expert, W, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct QuantizedExpertMatMul {
    static constexpr char const* kName = "QuantizedExpertMatMul";
    struct In {
        enum : int { X, expert, W, scales, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct DecodeAttentionGrowing {
    static constexpr char const* kName = "DecodeAttentionGrowing";
    struct In {
        enum : int { Q, K_new, V_new, K, Y, mask, kCount };
    };
    struct Out {
        enum : int { O, K_present, Y_present, kCount };
    };
};

struct CachedAttention {
    static constexpr char const* kName = "CachedAttention";
    struct In {
        enum : int { Q, K, V, mask, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct WeightMatMul {
    static constexpr char const* kName = "WeightMatMul";
    struct In {
        enum : int { X, W, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct WeightMatMulFloat16 {
    static constexpr char const* kName = "WeightMatMulFloat16";
    struct In {
        enum : int { X, W, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct WeightMatMulTransposed {
    static constexpr char const* kName = "WeightMatMulTransposed";
    struct In {
        enum : int { X, W, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct WeightMatMulTransposedFloat16 {
    static constexpr char const* kName = "WeightMatMulTransposedFloat16";
    struct In {
        enum : int { X, W, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct QuantizedMatMul {
    static constexpr char const* kName = "QuantizedMatMul";
    struct In {
        enum : int { X, W, scales, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct QuantizedMatMulZeroPoints {
    static constexpr char const* kName = "QuantizedMatMulZeroPoints";
    struct In {
        enum : int { X, W, scales, zero_points, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct QuantizedMatMulOffsets {
    static constexpr char const* kName = "QuantizedMatMulOffsets";
    struct In {
        enum : int { X, W, scales, offsets, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct QuantizedExpertMatMulOffsets {
    static constexpr char const* kName = "QuantizedExpertMatMulOffsets";
    struct In {
        enum : int { X, expert, W, scales, offsets, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

struct AdapterMatMul {
    static constexpr char const* kName = "AdapterMatMul";
    struct In {
        enum : int { Y, X, A, B, adapter_ids, kCount };
    };
    struct Out {
        enum : int { O, kCount };
    };
};

} // namespace lucid::table
