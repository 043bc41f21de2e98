// QuantizedMatMul for onnxruntime, with zero points, offsets or neither: pack weights, check shapes, call kernels.
#pragma once

#include "hosts/onnxruntime/context.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace lucid {

using Panels = std::shared_ptr<const uint8_t>;

// Returns a weight's panels, shared by all open sessions that read the weight, such as those of prefill and decode. The
// memory of a closed session may be reused, so the key contains a hash of the weight's bytes besides their addresses.
inline Panels share_panels(const QuantizedWeight& w) {
    size_t scales = w.columns * w.blocks * w.scale_bytes;
    const std::pair<const uint8_t*, size_t> pieces[] = {{w.numbers, w.columns * w.blocks * w.block_bytes}, {w.scales, scales},
                                                        {w.zero_points, w.columns * w.zero_bytes}, {w.offsets, scales}};
    std::array<uint64_t, 9> key{w.columns, w.blocks, w.block_bytes, w.scale_bytes};
    uint64_t hash = 1;
    for (size_t piece = 0; piece < 4; ++piece) {
        auto [data, bytes] = pieces[piece];
        key[4 + piece] = reinterpret_cast<uint64_t>(data);
        for (size_t at = 0; data != nullptr && at < bytes; at += 8) {
            uint64_t word = 0;
            std::memcpy(&word, data + at, std::min<size_t>(8, bytes - at));
            hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 32;
        }
    }
    key[8] = hash;
    static std::mutex mutex;
    static std::map<std::array<uint64_t, 9>, std::weak_ptr<const uint8_t>> known;
    std::lock_guard<std::mutex> lock(mutex);
    if (Panels panels = known[key].lock()) return panels;
    for (auto each = known.begin(); each != known.end();) each = each->second.expired() ? known.erase(each) : std::next(each);
    size_t bytes = (current_kernels().pack_weight(w, nullptr) + 63) / 64 * 64;
    auto* memory = static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
    if (memory == nullptr) throw std::bad_alloc();
    Panels panels(memory, std::free);
    current_kernels().pack_weight(w, memory);
    known[key] = panels;
    return panels;
}

// S is the type of scales and offsets; Of is the operator's entry in the table, with zero points, offsets or neither.
template <class T, class S, class Of>
struct QuantizedMatMul : OperatorBase<T> {
    using Table = Of;
    using In = typename Table::In;
    static constexpr bool kHasZeros = std::is_same_v<Table, table::QuantizedMatMulZeroPoints>;
    static constexpr bool kHasOffsets = std::is_same_v<Table, table::QuantizedMatMulOffsets>;
    static constexpr size_t kBlockStep = 16; // block sizes are multiples of it
    static constexpr size_t kMostInBlock = size_t{1} << 15; // largest block: the sum of its products fits into int32

    static constexpr ONNXTensorElementDataType input_type(size_t index) {
        if (index == In::scales || (kHasOffsets && index == In::scales + 1)) return element_type<S>();
        return index == In::X ? element_type<T>() : element_type<uint8_t>();
    }

    // Packs the weight if it is constant and its shapes are valid; compute reports an error for invalid ones.
    static Panels pack(const OrtApi& api, const OrtKernelInfo* info) {
        Input<uint8_t> inputs[3];
        for (size_t index = In::W; index < In::kCount; ++index) {
            int is_constant = 0;
            const OrtValue* value = nullptr;
            check(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
            if (!is_constant) return nullptr;
            inputs[index - In::W] = read_tensor<uint8_t>(api, value);
        }
        if (inputs[0].shape.size() != 3 || inputs[1].shape.size() != 2) return nullptr;
        QuantizedWeight w = weight(inputs[0], inputs[1], inputs[2]);
        bool is_empty = w.columns * w.blocks * w.block_bytes == 0;
        return fits(w, inputs[1], inputs[2]) && w.block_bytes % 4 == 0 && !is_empty ? share_panels(w) : nullptr;
    }

    static void compute(const Context& context, const Attributes& attributes) {
        context.require(current_kernels().has_dots(), "it needs a processor with AVX2, or AVX-512 VNNI");
        auto x = context.input_of_any_rank<T>(In::X);
        auto numbers = context.input<uint8_t>(In::W, 3), scales = context.input<uint8_t>(In::scales, 2);
        Input<uint8_t> moves;
        if constexpr (kHasZeros || kHasOffsets) moves = context.input<uint8_t>(In::scales + 1, 2);
        context.require(!x.shape.empty(), "X has no axes");
        QuantizedWeight w = weight(numbers, scales, moves);
        size_t depth = x.at(x.shape.size() - 1), bits = depth == 0 ? 0 : w.blocks * w.block_bytes * 8 / depth;
        context.require((bits == 4 || bits == 8) && w.blocks * w.block_bytes * 8 == depth * bits &&
                            depth / w.blocks % kBlockStep == 0 && depth % w.blocks == 0,
                        "the blocks of W must cover the last axis of X, each with a multiple of 16 numbers of 4 or 8 bits");
        context.require(depth / w.blocks <= kMostInBlock, "a block of W has more than 32768 numbers");
        context.require(scales.at(0) == w.columns && scales.at(1) == w.blocks, "scales needs one number per block of W");
        context.require(fits(w, scales, moves) && (!kHasZeros || w.zero_bytes == (w.blocks * bits + 7) / 8),
                        kHasZeros ? "zero_points needs one number per block of W" : "offsets needs one number per block of W");
        std::vector<int64_t> shape = x.shape;
        shape.back() = numbers.shape[0];
        size_t rows = 1;
        for (size_t axis = 0; axis + 1 < x.shape.size(); ++axis) rows *= x.at(axis);
        T* o = context.output<T>(Table::Out::O, shape);
        kernels<T>().quantized_matmul({x.data, w, attributes.panels.get(), o, rows, depth, bits}, SessionPool(context));
    }

private:
    static QuantizedWeight weight(const Input<uint8_t>& numbers, const Input<uint8_t>& scales, const Input<uint8_t>& moves) {
        QuantizedWeight w{numbers.data, scales.data, nullptr, nullptr, numbers.at(0), numbers.at(1), numbers.at(2), 0, sizeof(S)};
        if (kHasOffsets) w.offsets = moves.data;
        if (kHasZeros) w.zero_points = moves.data, w.zero_bytes = moves.shape.size() == 2 ? moves.at(1) : 0;
        return w;
    }

    // Returns whether each block of each column has a scale and, if required, a zero point or an offset.
    static bool fits(const QuantizedWeight& w, const Input<uint8_t>& scales, const Input<uint8_t>& moves) {
        if (scales.at(0) != w.columns || scales.at(1) != w.blocks) return false;
        if (!kHasZeros && !kHasOffsets) return true;
        if (moves.shape.size() != 2) return false;
        if (kHasOffsets) return moves.at(0) == w.blocks && moves.at(1) == w.columns;
        return moves.at(0) == w.columns && (w.zero_bytes == w.blocks || w.zero_bytes == (w.blocks + 1) / 2);
    }
};

} // namespace lucid
