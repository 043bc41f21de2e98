// WeightMatMul for onnxruntime, also for a weight in float16 or transposed: checks shapes and calls the CPU kernels.
#pragma once

#include "hosts/onnxruntime/context.h"
#include "hosts/operators_generated.h"

namespace lucid {

template <class T, class W = T, bool Transposed = false>
struct WeightMatMul {
    template <class Same, class Narrower>
    using Either = std::conditional_t<std::is_same_v<W, T>, Same, Narrower>;
    using Table = std::conditional_t<Transposed,
                                     Either<table::WeightMatMulTransposed, table::WeightMatMulTransposedFloat16>,
                                     Either<table::WeightMatMul, table::WeightMatMulFloat16>>;
    using In = typename Table::In;
    static constexpr bool kSolves = false, kScales = false;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::W ? element_type<W>() : element_type<T>();
    }

    static constexpr ONNXTensorElementDataType output_type(size_t) { return element_type<T>(); }

    static void compute(const Context& context, const Attributes&) {
        auto x = context.input_of_any_rank<T>(In::X);
        auto w = context.input<W>(In::W, 2);
        constexpr size_t depth = Transposed ? 1 : 0, columns = 1 - depth; // axes of W
        context.require(!x.shape.empty() && x.shape.back() == w.shape[depth],
                        Transposed ? "X has not as many columns as W" : "X has not as many columns as W has rows");
        std::vector<int64_t> shape = x.shape;
        shape.back() = w.shape[columns];
        size_t rows = 1;
        for (size_t axis = 0; axis + 1 < x.shape.size(); ++axis) rows *= x.at(axis);
        T* o = context.output<T>(Table::Out::O, shape);
        run({x.data, w.data, o, rows, w.at(depth), w.at(columns)}, SessionPool(context));
    }

private:
    static void run(const WeightMatMulArguments<T, W>& arguments, const Pool& pool) {
        const KernelsOf<T>& all = kernels<T>();
        if constexpr (std::is_same_v<W, T>)
            (Transposed ? all.weight_matmul_transposed : all.weight_matmul)(arguments, pool);
        else
            (Transposed ? all.weight_matmul_transposed_half : all.weight_matmul_half)(arguments, pool);
    }
};

} // namespace lucid
