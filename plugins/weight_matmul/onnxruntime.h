// WeightMatMul (also by a float16 or transposed weight) and AdapterMatMul for onnxruntime: check inputs, call kernels.
#pragma once

#include "hosts/onnxruntime/context.h"

namespace lucid {

template <class T, class W = T, bool Transposed = false>
struct WeightMatMul : OperatorBase<T> {
    template <class Same, class Narrower>
    using Either = std::conditional_t<std::is_same_v<W, T>, Same, Narrower>;
    using Table = std::conditional_t<Transposed,
                                     Either<table::WeightMatMulTransposed, table::WeightMatMulTransposedFloat16>,
                                     Either<table::WeightMatMul, table::WeightMatMulFloat16>>;
    using In = typename Table::In;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::W ? element_type<W>() : element_type<T>();
    }

    static void compute(const Context& context, const Attributes&) {
        auto x = context.input_of_any_rank<T>(In::X);
        auto w = context.input<W>(In::W, 2);
        constexpr size_t depth = Transposed ? 1 : 0, columns = 1 - depth; // axes of W
        context.require(!x.shape.empty() && x.shape.back() == w.shape[depth],
                        Transposed ? "the last axes of X and W differ" : "the last axis of X and the first of W differ");
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

// Y + X · A · B, with A and B of each batch row's LoRA adapter.
template <class T>
struct AdapterMatMul : OperatorBase<T> {
    using Table = table::AdapterMatMul;
    using In = Table::In;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::adapter_ids ? element_type<int64_t>() : element_type<T>();
    }

    static void compute(const Context& context, const Attributes&) {
        auto y = context.input<T>(In::Y, 3), x = context.input<T>(In::X, 3);
        auto a = context.input<T>(In::A, 3), b = context.input<T>(In::B, 3);
        auto ids = context.input<int64_t>(In::adapter_ids, 1);
        context.require(x.shape[0] == y.shape[0] && x.shape[1] == y.shape[1], "X has not as many rows as Y");
        context.require(a.shape[1] == x.shape[2] && b.shape[2] == y.shape[2], "A and B do not fit X and Y");
        context.require(a.shape[0] == b.shape[0] && a.shape[2] == b.shape[1], "A and B do not fit each other");
        context.require(ids.shape[0] == y.shape[0], "adapter_ids has not as many elements as Y has rows");
        for (size_t row = 0; row < y.at(0); ++row)
            context.require(ids.data[row] >= 0 && ids.data[row] < a.shape[0], "adapter_ids is negative or beyond the adapters");
        T* o = context.output<T>(Table::Out::O, y.shape);
        kernels<T>().adapter_matmul({y.data, x.data, a.data, b.data, ids.data, o, y.at(0), y.at(1), x.at(2), a.at(2), y.at(2)},
                                    SessionPool(context));
    }
};

} // namespace lucid
