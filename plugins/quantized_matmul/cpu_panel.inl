// Panels: the packed copy of a weight. A panel holds 16 columns, block after block, in reading order:
//
//     numbers     [block_bytes / 4][kInPanel][4 bytes]: vectors of 4 or 8 elements of each column
//     scales      [kInPanel]
//     offsets     [kInPanel], if the weight has them
//     zero points [kInPanel] bytes, if the weight has them
//
// The last panel is padded with copies of the last column.

constexpr size_t kInPanel = 16; // columns
constexpr size_t kLine = 64;    // bytes of a vector of numbers

// Sizes in bytes of a panel's block and of its parts.
struct PanelSizes {
    size_t numbers, scales, block;

    explicit PanelSizes(const QuantizedWeight& w)
        : numbers(w.block_bytes * kInPanel), scales(w.scale_bytes * kInPanel),
          block(numbers + scales * (w.offsets != nullptr ? 2 : 1) + (w.zero_points != nullptr ? kInPanel : 0)) {}
};

inline size_t count_panels(const QuantizedWeight& w) { return (w.columns + kInPanel - 1) / kInPanel; }

// Copies `count` adjacent elements of `Size` bytes of each column to [count][kInPanel].
template <size_t Size>
LUCID_INLINE void transpose_elements(uint8_t* to, const uint8_t* from, size_t stride, size_t columns, size_t count) {
    for (size_t i = 0; i < count; ++i)
        for (size_t column = 0; column < kInPanel; ++column, to += Size)
            std::memcpy(to, from + std::min(column, columns - 1) * stride + i * Size, Size);
}

// Copies one scale or offset of each column; in `from` they are `stride` elements apart.
LUCID_INLINE void copy_scales(uint8_t* to, const uint8_t* from, size_t stride, size_t columns, size_t scale_bytes) {
    if (scale_bytes == sizeof(float))
        transpose_elements<sizeof(float)>(to, from, stride * sizeof(float), columns, 1);
    else
        transpose_elements<sizeof(Half)>(to, from, stride * sizeof(Half), columns, 1);
}

inline void pack_panel(uint8_t* to, const QuantizedWeight& w, size_t index) {
    size_t first = index * kInPanel, columns = std::min(kInPanel, w.columns - first), stride = w.blocks * w.block_bytes;
    PanelSizes sizes(w);
    for (size_t b = 0; b < w.blocks; ++b, to += sizes.block) {
        transpose_elements<4>(to, w.numbers + first * stride + b * w.block_bytes, stride, columns, w.block_bytes / 4);
        uint8_t* next = to + sizes.numbers;
        copy_scales(next, w.scales + (first * w.blocks + b) * w.scale_bytes, w.blocks, columns, w.scale_bytes);
        next += sizes.scales;
        if (w.offsets != nullptr) {
            copy_scales(next, w.offsets + (b * w.columns + first) * w.scale_bytes, 1, columns, w.scale_bytes);
            next += sizes.scales;
        }
        for (size_t column = 0; column < kInPanel && w.zero_points != nullptr; ++column) {
            const uint8_t* from = w.zero_points + (first + std::min(column, columns - 1)) * w.zero_bytes;
            bool halves = w.zero_bytes < w.blocks;
            next[column] = halves ? from[b / 2] >> b % 2 * 4 : from[b];
        }
    }
}
