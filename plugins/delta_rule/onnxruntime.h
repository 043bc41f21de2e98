// DeltaRule for onnxruntime: checks shapes and calls the CPU kernel.
#pragma once

#include "hosts/onnxruntime/context.h"

namespace lucid {

template <class T>
struct DeltaRule : OperatorBase<T> {
    using Table = table::DeltaRule;
    using In = Table::In;
    static constexpr bool kScales = true;

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        return index == In::log_decay || index == In::state ? element_type<float>() : element_type<T>();
    }

    static constexpr ONNXTensorElementDataType output_type(size_t index) {
        return index == Table::Out::new_state ? element_type<float>() : element_type<T>();
    }

    static void compute(const Context& context, const Attributes& attributes) {
        auto query = context.input<T>(In::query, 4), key = context.input<T>(In::key, 4);
        auto value = context.input<T>(In::value, 4), beta = context.input<T>(In::beta, 3);
        auto log_decay = context.input<float>(In::log_decay, 3), state = context.input<float>(In::state, 4);
        std::vector<int64_t> gates(key.shape.begin(), key.shape.end() - 1), rows = gates, states = gates;
        rows.push_back(value.shape[3]);
        states[2] = key.shape[3];
        states.push_back(value.shape[3]);
        context.require(query.shape == key.shape, "query and key differ in shape");
        context.require(value.shape == rows, "key and value differ in batch, heads or tokens");
        context.require(log_decay.shape == gates, "log_decay is not [batch, heads, sequence]");
        context.require(beta.shape == gates, "beta is not [batch, heads, sequence]");
        context.require(state.shape == states, "state is not [batch, heads, key_width, value_width]");
        T* output = context.output<T>(Table::Out::output, rows);
        float* new_state = context.output<float>(Table::Out::new_state, states);
        kernels<T>().delta_rule({query.data, key.data, value.data, log_decay.data, beta.data, state.data, output,
                                 new_state, key.at(0) * key.at(1), key.at(2), key.at(3), value.at(3),
                                 attributes.scale},
                                SessionPool(context));
    }
};

} // namespace lucid
