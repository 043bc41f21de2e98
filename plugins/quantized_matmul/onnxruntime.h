// QuantizedMatMul for onnxruntime, with zero points, offsets or neither: checks shapes and calls the CPU kernels.
#pragma once

#include "hosts/onnxruntime/context.h"
#include "hosts/operators_generated.h"

namespace lucid {

// S is the type of scales and offsets, Of the form's entry in the table of operators.
template <class T, class S, class Of>
struct QuantizedMatMul {
    using Table = Of;
    using In = typename Table::In;
    static constexpr bool kSolves = false, kScales = false;
    static constexpr size_t kBlockStep = 16; // block sizes are multiples of it
    static constexpr size_t kMostInBlock = size_t{1} << 15; // largest block: the sum of its products fits into int32

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        if constexpr (std::is_same_v<Table, table::QuantizedMatMulOffsets>)
            if (index == In::offsets) return element_type<S>();
        if (index == In::scales) return element_type<S>();
        return index == In::X ? element_type<T>() : element_type<uint8_t>();
    }

    static constexpr ONNXTensorElementDataType output_type(size_t) { return element_type<T>(); }

    static void compute(const Context& context, const Attributes&) {
        auto x = context.input_of_any_rank<T>(In::X);
        auto w = context.input<uint8_t>(In::W, 3);
        auto scales = context.input<S>(In::scales, 2);
        context.require(!x.shape.empty(), "X has no axes");
        size_t depth = x.at(x.shape.size() - 1), columns = w.at(0), blocks = w.at(1), bytes = w.at(2);
        size_t bits = depth == 0 ? 0 : blocks * bytes * 8 / depth;
        context.require((bits == 4 || bits == 8) && blocks * bytes * 8 == depth * bits &&
                            depth / blocks % kBlockStep == 0 && depth % blocks == 0,
                        "W has not X's columns in blocks of 4 or 8 bits, each a multiple of 16 numbers");
        context.require(depth / blocks <= kMostInBlock, "a block of W has more than 32768 numbers");
        context.require(scales.at(0) == columns && scales.at(1) == blocks, "scales has not one number a block of W");
        const uint8_t* zero_points = nullptr;
        const S* offsets = nullptr;
        if constexpr (std::is_same_v<Table, table::QuantizedMatMulZeroPoints>) {
            auto given = context.input<uint8_t>(In::zero_points, 2);
            context.require(given.at(0) == columns && given.at(1) == (blocks * bits + 7) / 8,
                            "zero_points has not one number a block of W");
            zero_points = given.data;
        }
        if constexpr (std::is_same_v<Table, table::QuantizedMatMulOffsets>) {
            auto given = context.input<S>(In::offsets, 2);
            context.require(given.at(0) == blocks && given.at(1) == columns, "offsets has not one number a block of W");
            offsets = given.data;
        }
        std::vector<int64_t> shape = x.shape;
        shape.back() = w.shape[0];
        size_t rows = 1;
        for (size_t axis = 0; axis + 1 < x.shape.size(); ++axis) rows *= x.at(axis);
        T* o = context.output<T>(Table::Out::O, shape);
        QuantizedMatMulArguments<T, S> arguments{x.data, w.data, scales.data, zero_points, offsets, o,
                                                 rows,   depth,  columns,     blocks,      bits};
        if constexpr (std::is_same_v<S, T>)
            kernels<T>().quantized_matmul(arguments, SessionPool(context));
        else
            kernels<T>().quantized_matmul_half(arguments, SessionPool(context));
    }
};

} // namespace lucid
