// WeightMatMul for onnxruntime, and its form for a weight in float16: shapes are checked, the CPU kernel computes.
#pragma once

#include "hosts/onnxruntime/context.h"
#include "hosts/operators_generated.h"

namespace lucid {

template <class T, class W = T>
struct WeightMatMul {
    using Table = std::conditional_t<std::is_same_v<W, T>, table::WeightMatMul, table::WeightMatMulFloat16>;
    using In = typename Table::In;
    static constexpr bool kSolves = false, kScales = false;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::W ? element_type<W>() : element_type<T>();
    }

    static constexpr ONNXTensorElementDataType output_type(size_t) { return element_type<T>(); }

    static void compute(const Context& context, const Attributes&) {
        auto x = context.input_of_any_rank<T>(In::X);
        auto w = context.input<W>(In::W, 2);
        context.require(!x.shape.empty() && x.shape.back() == w.shape[0], "X has not as many columns as W has rows");
        std::vector<int64_t> shape = x.shape;
        shape.back() = w.shape[1];
        size_t rows = 1;
        for (size_t axis = 0; axis + 1 < x.shape.size(); ++axis) rows *= x.at(axis);
        T* o = context.output<T>(Table::Out::O, shape);
        run({x.data, w.data, o, rows, w.at(0), w.at(1)}, SessionPool(context));
    }

private:
    static void run(const WeightMatMulArguments<T, W>& arguments, const Pool& pool) {
        if constexpr (std::is_same_v<W, T>)
            kernels<T>().weight_matmul(arguments, pool);
        else
            kernels<T>().weight_matmul_half(arguments, pool);
    }
};

} // namespace lucid
