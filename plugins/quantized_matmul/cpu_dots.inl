// The products of quantized_matmul with AVX-512 VNNI, which multiplies four pairs of bytes and adds them in one instruction.
// The rest of the kernels for AVX-512 runs where that is missing, so these functions alone are compiled for it.

#if LUCID_LANES == 16
#define LUCID_DOTS __attribute__((target("avx512vnni")))

inline bool has_dots() {
    static const bool has = __builtin_cpu_supports("avx512vnni");
    return has;
}

// Computes the same as multiply_panel_plainly, for R rows.
template <int R>
LUCID_DOTS void multiply_panel(float* total, const Panel& panel, const Group& group, size_t blocks, size_t fours) {
    __m512 result[R];
    for (int r = 0; r < R; ++r) result[r] = _mm512_setzero_ps();
    const uint8_t* w = panel.numbers;
    const int8_t* x = group.numbers;
    const float *steps = group.steps, *totals = group.totals;
    const int32_t* sums = group.sums;
    for (size_t b = 0; b < blocks; ++b, steps += R, sums += R) {
        __m512i dot[R];
        for (int r = 0; r < R; ++r) dot[r] = _mm512_set1_epi32(sums[r]);
        if (panel.zero_points != nullptr) {
            __m512i zero = _mm512_load_si512(panel.zero_points + b * kInPanel);
            for (int r = 0; r < R; ++r) dot[r] = _mm512_mullo_epi32(dot[r], zero);
        }
        for (size_t four = 0; four < fours; ++four, w += kLine, x += 4 * R) {
            __m512i numbers = _mm512_load_si512(w);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                int32_t given;
                std::memcpy(&given, x + 4 * r, sizeof given);
                dot[r] = _mm512_dpbusd_epi32(dot[r], numbers, _mm512_set1_epi32(given));
            }
        }
        __m512 scale = _mm512_load_ps(panel.scales + b * kInPanel);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
            result[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), _mm512_mul_ps(scale, _mm512_set1_ps(steps[r])), result[r]);
        if (panel.offsets == nullptr) continue;
        __m512 offset = _mm512_load_ps(panel.offsets + b * kInPanel);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) result[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(totals[r]), result[r]);
        totals += R;
    }
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(total + r * kInPanel, result[r]);
}

// Sums of 4 lanes each: G[l][c] = Σ of lane l's four numbers of column c, for 4 columns.
LUCID_INLINE __m512i sum_fours(const __m512i (&column)[4]) {
    __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(column[0], column[1]), _mm512_unpackhi_epi32(column[0], column[1]));
    __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(column[2], column[3]), _mm512_unpackhi_epi32(column[2], column[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}

// Multiplies a line of 16 columns, 4 or 8 numbers of each, by a row's numbers, and sums by quarters of the line.
template <size_t Bits>
LUCID_DOTS LUCID_INLINE void multiply_lines(__m512i (&quarter)[4], const uint8_t* from, size_t stride, size_t columns,
                                            __mmask64 there, const int8_t* x) {
    __m512i first = _mm512_loadu_si512(x), second = first;
    if constexpr (Bits == 4) { // numbers of even places, then of odd ones
        __m512i more = _mm512_loadu_si512(x + kLine);
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        second = _mm512_permutex2var_epi32(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), more);
        first = _mm512_permutex2var_epi32(first, even, more);
    }
    __m512i four[4];
#pragma GCC unroll 4
    for (size_t at = 0; at < 4; ++at) {
        __m512i column[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i) {
            __m512i numbers = _mm512_maskz_loadu_epi8(there, from);
            __builtin_prefetch(from + kInPanel * stride, 0, 2); // the next panel's
            if (at * 4 + i + 1 < columns) from += stride;
            column[i] = _mm512_setzero_si512();
            if constexpr (Bits == 4) {
                const __m512i low = _mm512_set1_epi8(15);
                column[i] = _mm512_dpbusd_epi32(column[i], _mm512_and_si512(_mm512_srli_epi16(numbers, 4), low), second);
                numbers = _mm512_and_si512(numbers, low);
            }
            column[i] = _mm512_dpbusd_epi32(column[i], numbers, first);
        }
        four[at] = sum_fours(column);
    }
    __m512i low = _mm512_shuffle_i32x4(four[0], four[1], 0x88), high = _mm512_shuffle_i32x4(four[2], four[3], 0x88);
    quarter[0] = _mm512_shuffle_i32x4(low, high, 0x88), quarter[2] = _mm512_shuffle_i32x4(low, high, 0xdd);
    low = _mm512_shuffle_i32x4(four[0], four[1], 0xdd), high = _mm512_shuffle_i32x4(four[2], four[3], 0xdd);
    quarter[1] = _mm512_shuffle_i32x4(low, high, 0x88), quarter[3] = _mm512_shuffle_i32x4(low, high, 0xdd);
}

// Computes the same as multiply_panel for one row, without transposing the weight, which would take longer than multiplying.
template <size_t Bits>
LUCID_DOTS void multiply_row(float* total, const uint8_t* w, size_t columns, const Panel& panel, const Group& row,
                             size_t blocks, size_t block_bytes) {
    size_t bytes = blocks * block_bytes;
    __m512 result = _mm512_setzero_ps();
    __m512i dot = _mm512_setzero_si512();
    size_t b = 0, in_block = 0;
    for (size_t at = 0; at < bytes; at += kLine) {
        __mmask64 there = bytes - at >= kLine ? ~__mmask64{0} : (__mmask64{1} << (bytes - at)) - 1;
        __m512i quarter[4];
        multiply_lines<Bits>(quarter, w + at, bytes, columns, there, row.numbers + at * 8 / Bits);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i) {
            dot = _mm512_add_epi32(dot, quarter[i]);
            in_block += kLine / 4;
            if (in_block < block_bytes || b == blocks) continue;
            __m512i offset = _mm512_set1_epi32(row.sums[b]);
            if (panel.zero_points != nullptr)
                offset = _mm512_mullo_epi32(offset, _mm512_load_si512(panel.zero_points + b * kInPanel));
            __m512 scale = _mm512_mul_ps(_mm512_load_ps(panel.scales + b * kInPanel), _mm512_set1_ps(row.steps[b]));
            result = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(dot, offset)), scale, result);
            if (panel.offsets != nullptr) {
                __m512 more = _mm512_load_ps(panel.offsets + b * kInPanel);
                result = _mm512_fmadd_ps(more, _mm512_set1_ps(row.totals[b]), result);
            }
            dot = _mm512_setzero_si512();
            in_block = 0, ++b;
        }
    }
    _mm512_storeu_ps(total, result);
}

template <int R = kInGroup>
LUCID_INLINE void multiply_group(size_t rows, float* total, const Panel& panel, const Group& group, size_t blocks,
                                 size_t fours) {
    if constexpr (R > 0) {
        if (rows == R) return multiply_panel<R>(total, panel, group, blocks, fours);
        multiply_group<R - 1>(rows, total, panel, group, blocks, fours);
    }
}
#else
inline bool has_dots() { return false; } // so the functions below are never called

inline void multiply_group(size_t, float*, const Panel&, const Group&, size_t, size_t) {}

template <size_t Bits>
void multiply_row(float*, const uint8_t*, size_t, const Panel&, const Group&, size_t, size_t) {}
#endif
