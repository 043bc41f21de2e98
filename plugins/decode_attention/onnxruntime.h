// DecodeAttention for onnxruntime, also over caches in other types, and standard attention: checks shapes and calls the
// CPU kernel.
#pragma once

#include "hosts/onnxruntime/context.h"

namespace lucid {

// K and Y have type S: T, Half or int8_t. With int8_t the scales of K and Y come before the mask. Growing returns the
// cache with the new rows; the others return only the new rows of Y. Without Solves, Y is V, and no row is returned.
template <class T, class S = T, bool Growing = false, bool Solves = true>
struct DecodeAttention : OperatorBase<T> {
    static constexpr bool kScaled = std::is_same_v<S, int8_t>, kSolves = Solves;
    template <class Plain, class Float16, class Int8>
    using ByCache = std::conditional_t<kScaled, Int8, std::conditional_t<std::is_same_v<S, T>, Plain, Float16>>;
    using Standard = ByCache<table::CachedAttention, table::CachedAttentionFloat16, table::CachedAttentionInt8>;
    using Solving = ByCache<table::DecodeAttention, table::DecodeAttentionFloat16, table::DecodeAttentionInt8>;
    using Separate = std::conditional_t<Solves, Solving, Standard>;
    using Table = std::conditional_t<Growing, table::DecodeAttentionGrowing, Separate>;
    static_assert(!Growing || std::is_same_v<S, T>, "a cache of another type grows in its own form");
    using In = typename Table::In;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        if (index == In::K || index == In::Y) return element_type<S>();
        if (index == In::mask) return element_type<bool>();
        return index > In::Y ? element_type<float>() : element_type<T>(); // the scales
    }

    static void compute(const Context& context, const Attributes& attributes) {
        auto q = context.input<T>(In::Q, 4);
        auto k_new = context.input<T>(In::K_new, 4), v_new = context.input<T>(In::V_new, 4);
        auto k = context.input<S>(In::K, 4), y = context.input<S>(In::Y, 4);
        auto mask = context.input<bool>(In::mask, 2);
        context.require(y.shape == k.shape, "K and Y differ in shape");
        std::vector<int64_t> row = k.shape, column = k.shape;
        row[2] = q.shape[2];
        column[3] = 1;
        context.require(k_new.shape == row && v_new.shape == row, "K_new or V_new is not [batch, kv_heads, sequence, head_dim]");
        context.require(
            q.at(0) == k.at(0) && q.at(3) == k.at(3) && k.at(1) != 0 && q.at(1) % k.at(1) == 0,
            "Q and K do not fit together");
        context.require(mask.at(0) == k.at(0) && mask.at(1) == k.at(2) + q.at(2), "mask is not [batch, past_sequence + sequence]");
        const float *k_scale = nullptr, *y_scale = nullptr;
        if constexpr (kScaled) {
            auto of_k = context.input<float>(In::K_scale, 4), of_y = context.input<float>(In::Y_scale, 4);
            context.require(of_k.shape == column && of_y.shape == column, "K_scale or Y_scale is not one number a row");
            k_scale = of_k.data;
            y_scale = of_y.data;
        }
        T *o = context.output<T>(Table::Out::O, q.shape), *y_new = nullptr;
        S *k_present = nullptr, *y_present = nullptr;
        size_t y_step = q.at(2) * q.at(3);
        if constexpr (Growing) {
            context.require(q.shape[2] != 0, "Q has no token");
            std::vector<int64_t> grown = k.shape;
            grown[2] += q.shape[2];
            k_present = context.output<S>(Table::Out::K_present, grown);
            y_present = context.output<S>(Table::Out::Y_present, grown);
            y_new = y_present + k.at(2) * k.at(3);
            y_step += k.at(2) * k.at(3);
        } else if constexpr (Solves) {
            y_new = context.output<T>(Table::Out::Y_new, row);
        }
        run({q.data, k_new.data, v_new.data, k.data, y.data, k_scale, y_scale, mask.data, o, y_new, y_step, k_present,
             y_present, k.at(0), k.at(1), q.at(1) / k.at(1), q.at(2), k.at(2), k.at(3), attributes.epsilon, attributes.diagonal,
             Solves},
            SessionPool(context));
    }

private:
    static void run(const DecodeArguments<T, S>& arguments, const Pool& pool) {
        if constexpr (kScaled)
            kernels<T>().decode_int8(arguments, pool);
        else if constexpr (std::is_same_v<S, T>)
            kernels<T>().decode(arguments, pool);
        else
            kernels<T>().decode_half(arguments, pool);
    }
};

// Standard attention over a cache of K and V.
template <class T, class S = T>
using CachedAttention = DecodeAttention<T, S, false, false>;

} // namespace lucid
