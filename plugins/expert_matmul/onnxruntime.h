// ExpertMatMul for onnxruntime: checks shapes and calls the CPU kernel.
#pragma once

#include "hosts/onnxruntime/context.h"
#include "hosts/operators_generated.h"

#include <algorithm>
#include <numeric>

namespace lucid {

template <class T>
struct ExpertMatMul {
    using Table = table::ExpertMatMul;
    using In = Table::In;
    static constexpr bool kSolves = false, kScales = false;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::expert ? element_type<int64_t>() : element_type<T>();
    }

    static constexpr ONNXTensorElementDataType output_type(size_t) { return element_type<T>(); }

    static void compute(const Context& context, const Attributes&) {
        auto x = context.input<T>(In::X, 2), w = context.input<T>(In::W, 3);
        auto expert = context.input<int64_t>(In::expert, 1);
        context.require(x.shape[1] == w.shape[2], "X has not as many columns as the matrices of W");
        context.require(expert.shape[0] == x.shape[0], "expert has not as many elements as X has rows");
        for (size_t row = 0; row < x.at(0); ++row)
            context.require(expert.data[row] >= 0 && expert.data[row] < w.shape[0], "there is no such expert");
        std::vector<size_t> order(x.at(0));
        std::iota(order.begin(), order.end(), size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t one, size_t other) { return expert.data[one] < expert.data[other]; });
        std::vector<ExpertRows> chosen;
        for (size_t place = 0; place < order.size(); ++place) {
            size_t own = static_cast<size_t>(expert.data[order[place]]);
            if (chosen.empty() || chosen.back().expert != own) chosen.push_back({own, place, 0});
            ++chosen.back().rows;
        }
        T* o = context.output<T>(Table::Out::O, {x.shape[0], w.shape[1]});
        kernels<T>().expert_matmul({x.data, w.data, o, order.data(), chosen.data(), chosen.size(), x.at(0), x.at(1), w.at(1)},
                                   SessionPool(context));
    }
};

} // namespace lucid
