// Precondition for onnxruntime: checks shapes and calls the CPU kernel.
#pragma once

#include "hosts/onnxruntime/context.h"

namespace lucid {

template <class T>
struct Precondition : OperatorBase<T> {
    using Table = table::Precondition;
    using In = Table::In;
    static constexpr bool kSolves = true;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::mask ? element_type<bool>() : element_type<T>();
    }

    static void compute(const Context& context, const Attributes& attributes) {
        auto k = context.input<T>(In::K, 4), v = context.input<T>(In::V, 4);
        auto k_past = context.input<T>(In::K_past, 4), y_past = context.input<T>(In::Y_past, 4);
        auto mask = context.input<bool>(In::mask, 2);
        context.require(v.shape == k.shape, "K and V differ in shape");
        context.require(y_past.shape == k_past.shape, "K_past and Y_past differ in shape");
        context.require(k_past.at(0) == k.at(0) && k_past.at(1) == k.at(1) && k_past.at(3) == k.at(3),
                        "K and K_past differ in batch, heads or width");
        context.require(mask.at(0) == k.at(0) && mask.at(1) == k_past.at(2) + k.at(2),
                        "mask is not [batch, past_sequence + sequence]");
        T* y = context.output<T>(Table::Out::Y, k.shape);
        kernels<T>().precondition({k.data, v.data, k_past.data, y_past.data, mask.data, y, k.at(0), k.at(1), k.at(2),
                                   k_past.at(2), k.at(3), attributes.epsilon, attributes.diagonal},
                                  SessionPool(context));
    }
};

} // namespace lucid
