// ExpertMatMul and QuantizedExpertMatMul (also with offsets) for onnxruntime: check inputs and call the CPU kernels.
#pragma once

#include "hosts/onnxruntime/context.h"

#include <algorithm>
#include <numeric>

namespace lucid {

// The rows sorted by expert, and the experts that have rows.
struct SortedRows {
    std::vector<size_t> order;
    std::vector<ExpertRows> chosen;

    SortedRows(const Context& context, const int64_t* expert, size_t rows, int64_t experts) : order(rows) {
        for (size_t row = 0; row < rows; ++row)
            context.require(expert[row] >= 0 && expert[row] < experts, "expert is negative or not below the number of experts");
        std::iota(order.begin(), order.end(), size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](size_t one, size_t other) { return expert[one] < expert[other]; });
        for (size_t place = 0; place < order.size(); ++place) {
            size_t own = static_cast<size_t>(expert[order[place]]);
            if (chosen.empty() || chosen.back().expert != own) chosen.push_back({own, place, 0});
            ++chosen.back().rows;
        }
    }
};

template <class T>
struct ExpertMatMul : OperatorBase<T> {
    using Table = table::ExpertMatMul;
    using In = Table::In;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::expert ? element_type<int64_t>() : element_type<T>();
    }

    static void compute(const Context& context, const Attributes&) {
        auto x = context.input<T>(In::X, 2), w = context.input<T>(In::W, 3);
        auto expert = context.input<int64_t>(In::expert, 1);
        context.require(x.shape[1] == w.shape[2], "X has not as many columns as the matrices of W");
        context.require(expert.shape[0] == x.shape[0], "expert has not as many elements as X has rows");
        SortedRows sorted(context, expert.data, x.at(0), w.shape[0]);
        T* o = context.output<T>(Table::Out::O, {x.shape[0], w.shape[1]});
        kernels<T>().expert_matmul({x.data, w.data, o, sorted.order.data(), sorted.chosen.data(), sorted.chosen.size(), x.at(0),
                                    x.at(1), w.at(1)},
                                   SessionPool(context));
    }
};

// S is the type of scales and offsets; Of is the operator's entry in the table, with or without offsets.
template <class T, class S, class Of>
struct QuantizedExpertMatMul : OperatorBase<T> {
    using Table = Of;
    using In = typename Table::In;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        if (index == In::X) return element_type<T>();
        return index == In::expert ? element_type<int64_t>() : index == In::W ? element_type<uint8_t>() : element_type<S>();
    }

    static void compute(const Context& context, const Attributes&) {
        auto x = context.input<T>(In::X, 2);
        auto w = context.input<uint8_t>(In::W, 4);
        auto scales = context.input<S>(In::scales, 3);
        auto expert = context.input<int64_t>(In::expert, 1);
        size_t depth = x.at(1), columns = w.at(1), blocks = w.at(2), bytes = w.at(3);
        size_t bits = depth == 0 ? 0 : blocks * bytes * 8 / depth;
        context.require((bits == 4 || bits == 8) && blocks * bytes * 8 == depth * bits && depth % blocks == 0 &&
                            depth / blocks % 32 == 0,
                        "the blocks of W must cover the last axis of X, each with a multiple of 32 numbers of 4 or 8 bits");
        context.require(scales.at(0) == w.at(0) && scales.at(1) == columns && scales.at(2) == blocks,
                        "scales needs one number per block of W");
        const S* offsets = nullptr;
        if constexpr (std::is_same_v<Table, table::QuantizedExpertMatMulOffsets>) {
            auto given = context.input<S>(In::offsets, 3);
            context.require(given.shape == scales.shape, "offsets needs one number per block of W");
            offsets = given.data;
        }
        context.require(expert.shape[0] == x.shape[0], "expert has not as many elements as X has rows");
        SortedRows sorted(context, expert.data, x.at(0), w.shape[0]);
        T* o = context.output<T>(Table::Out::O, {x.shape[0], w.shape[1]});
        QuantizedExpertArguments<T, S> arguments{
            x.data, w.data, scales.data, offsets, o, sorted.order.data(), sorted.chosen.data(), sorted.chosen.size(),
            x.at(0), depth, columns, blocks, bits};
        if constexpr (std::is_same_v<S, T>)
            kernels<T>().quantized_expert_matmul(arguments, SessionPool(context));
        else
            kernels<T>().quantized_expert_matmul_half(arguments, SessionPool(context));
    }
};

} // namespace lucid
