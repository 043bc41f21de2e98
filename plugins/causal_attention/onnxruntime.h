// CausalAttention for onnxruntime: checks shapes and calls the CPU kernel.
#pragma once

#include "hosts/onnxruntime/context.h"

namespace lucid {

template <class T>
struct CausalAttention : OperatorBase<T> {
    using Table = table::CausalAttention;
    using In = Table::In;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::mask ? element_type<bool>() : element_type<T>();
    }

    static void compute(const Context& context, const Attributes&) {
        auto q = context.input<T>(In::Q, 4), k = context.input<T>(In::K, 4), y = context.input<T>(In::Y, 4);
        auto mask = context.input<bool>(In::mask, 2);
        context.require(y.shape == k.shape, "K and Y differ in shape");
        context.require(q.at(0) == k.at(0) && q.at(3) == k.at(3) && q.at(2) <= k.at(2), "Q and K do not fit together");
        context.require(k.at(1) != 0 && q.at(1) % k.at(1) == 0, "the heads of Q are not a multiple of those of K");
        context.require(mask.at(0) == k.at(0) && mask.at(1) == k.at(2), "mask is not [batch, total_sequence]");
        T* o = context.output<T>(Table::Out::O, q.shape);
        kernels<T>().attention({q.data, k.data, y.data, mask.data, o, k.at(0), k.at(1), q.at(1) / k.at(1), q.at(2),
                                k.at(2), k.at(3)},
                               SessionPool(context));
    }
};

} // namespace lucid
