// A panel holds the transposed blocks of some columns of a weight. This file makes panels and multiplies them in plain C++.

// A panel: numbers as bytes [depth / 4][kInPanel][4], scales [blocks][kInPanel], zero points and offsets likewise or null.
struct Panel {
    uint8_t* numbers;
    float* scales;
    int32_t* zero_points;
    float* offsets;
};

// Writes a line of each of a panel's columns as vectors of 4 numbers of each column.
template <size_t Bits>
LUCID_INLINE void transpose_lines(uint8_t* to, const uint8_t* from, size_t stride, size_t columns, size_t bytes) {
    constexpr size_t each = Bits == 4 ? 2 : 1; // vectors made of four bytes of each column
#if LUCID_LANES == 16
    Vector lines[kInPanel];
    __mmask64 there = bytes == kLine ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
    for (size_t column = 0; column < kInPanel; ++column) {
        const uint8_t* line = from + std::min(column, columns - 1) * stride;
        lines[column] = reinterpret_cast<Vector>(_mm512_maskz_loadu_epi8(there, line));
        __builtin_prefetch(line + kInPanel * stride, 0, 2); // the next panel's
    }
    transpose(lines);
    for (size_t i = 0; i < bytes / 4; ++i) {
        __m512i four = reinterpret_cast<__m512i>(lines[i]);
        __m512i* at = reinterpret_cast<__m512i*>(to + i * each * kLine);
        if constexpr (Bits == 8) {
            _mm512_store_si512(at, four);
        } else {
            const __m512i low = _mm512_set1_epi8(15);
            _mm512_store_si512(at, _mm512_and_si512(four, low));
            _mm512_store_si512(at + 1, _mm512_and_si512(_mm512_srli_epi16(four, 4), low));
        }
    }
#else
    for (size_t column = 0; column < kInPanel; ++column) {
        const uint8_t* line = from + std::min(column, columns - 1) * stride;
        for (size_t i = 0; i < bytes; ++i) {
            uint8_t* at = to + i / 4 * each * kLine + column * 4 + i % 4;
            at[0] = Bits == 4 ? line[i] & 15 : line[i];
            if constexpr (Bits == 4) at[kLine] = line[i] >> 4;
        }
    }
#endif
}

// Copies numbers [columns, count] to columns of a panel [count][kInPanel]; the last column is repeated to fill it.
template <class S>
LUCID_INLINE void transpose_scales(float* to, const S* from, size_t columns, size_t count) {
    size_t whole = 0;
#if LUCID_LANES == 16
    for (; whole + kInPanel <= count; whole += kInPanel) {
        Vector lines[kInPanel];
        for (size_t column = 0; column < kInPanel; ++column)
            lines[column] = widen(from + std::min(column, columns - 1) * count + whole);
        transpose(lines);
        for (size_t i = 0; i < kInPanel; ++i) store(to + (whole + i) * kInPanel, lines[i]);
    }
#endif
    for (size_t column = 0; column < kInPanel; ++column)
        for (size_t i = whole; i < count; ++i)
            to[i * kInPanel + column] = to_float(from[std::min(column, columns - 1) * count + i]);
}

template <size_t Bits>
void copy_zero_points(int32_t* to, const uint8_t* from, size_t columns, size_t count) {
    size_t stride = (count * Bits + 7) / 8;
    for (size_t column = 0; column < kInPanel; ++column)
        for (size_t i = 0; i < count; ++i) {
            uint8_t byte = from[std::min(column, columns - 1) * stride + i * Bits / 8];
            to[i * kInPanel + column] = Bits == 8 ? byte : i % 2 == 0 ? byte & 15 : byte >> 4;
        }
}

// Copies offsets [count, stride] of some columns to a panel [count][kInPanel], zeros beyond the last column.
template <class S>
LUCID_INLINE void copy_offsets(float* to, const S* from, size_t columns, size_t count, size_t stride) {
    for (size_t i = 0; i < count; ++i, from += stride, to += kInPanel) {
        __builtin_prefetch(from + kInPanel, 0, 2); // the next panel's
        if (columns == kInPanel) {
            for (size_t column = 0; column < kInPanel; column += kLanes) store(to + column, widen(from + column));
            continue;
        }
        for (size_t column = 0; column < kInPanel; ++column) to[column] = column < columns ? to_float(from[column]) : 0.0f;
    }
}

// total[r][c] = Σ_b (step[b][r] · scale[b][c] · Σ_k x[b][r][k] · (w[b][k][c] − zero[b][c]) + totals[b][r] · offset[b][c])
// for a group of rows.
inline void multiply_panel_plainly(size_t rows, float* total, const Panel& panel, const Group& group, size_t blocks,
                                   size_t fours) {
    std::fill(total, total + rows * kInPanel, 0.0f);
    const uint8_t* w = panel.numbers;
    const int8_t* x = group.numbers;
    for (size_t b = 0; b < blocks; ++b, w += fours * kLine, x += fours * 4 * rows)
        for (size_t r = 0; r < rows; ++r)
            for (size_t c = 0; c < kInPanel; ++c) {
                int32_t dot = group.sums[b * rows + r] * (panel.zero_points != nullptr ? panel.zero_points[b * kInPanel + c] : 1);
                for (size_t k = 0; k < fours * 4; ++k)
                    dot += x[k / 4 * 4 * rows + r * 4 + k % 4] * w[k / 4 * kLine + c * 4 + k % 4];
                float& sum = total[r * kInPanel + c];
                sum += static_cast<float>(dot) * (panel.scales[b * kInPanel + c] * group.steps[b * rows + r]);
                if (panel.offsets != nullptr) sum += group.totals[b * rows + r] * panel.offsets[b * kInPanel + c];
            }
}
