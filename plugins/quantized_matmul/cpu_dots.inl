// The products of quantized_matmul with AVX-512 VNNI, which multiplies four pairs of bytes and adds them in one instruction.
// The rest of the kernels for AVX-512 runs where that is missing, so these functions alone are compiled for it.

#if LUCID_LANES == 16
#define LUCID_DOTS __attribute__((target("avx512vnni")))

inline bool has_dots() {
    static const bool has = __builtin_cpu_supports("avx512vnni");
    return has;
}

// dot[r] += four numbers of row r times those of each column. GCC copies every sum twice where this is an intrinsic.
template <int R>
LUCID_DOTS LUCID_INLINE void add_fours(__m512i (&dot)[R], __m512i numbers, const int8_t* x) {
    typedef int32_t Four __attribute__((aligned(4), may_alias));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(dot[r]) : "v"(numbers), "m"(reinterpret_cast<const Four*>(x)[r]));
}

// Computes the same as multiply_panel_plainly, for R rows. A panel is one stream, which hardware prefetches; asking for it
// too made one row 1.2 times slower.
template <size_t Bits, class S, int R>
LUCID_DOTS void multiply_panel(float* total, const uint8_t* panel, const Group& group, const QuantizedWeight& w) {
    const __m512i low = _mm512_set1_epi8(15);
    const bool zeros = w.zero_points != nullptr, offsets = w.offsets != nullptr;
    const size_t blocks = w.blocks, bytes = w.block_bytes * kInPanel;
    const int8_t* x = group.numbers;
    __m512 result[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) result[r] = _mm512_setzero_ps();
    for (size_t at = 0; at < blocks * R; at += R) {
        __m512i dot[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) dot[r] = _mm512_set1_epi32(group.sums[at + r]);
        if (zeros) {
            const uint8_t* from = panel + bytes + kInPanel * sizeof(S) * (offsets ? 2 : 1);
            __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
            __m512i zero = _mm512_cvtepu8_epi32(Bits == 8 ? stored : _mm_and_si128(stored, _mm512_castsi512_si128(low)));
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) dot[r] = _mm512_mullo_epi32(dot[r], zero);
        }
        for (const uint8_t* end = panel + bytes; panel < end; panel += kLine) {
            __m512i numbers = _mm512_loadu_si512(panel);
            if constexpr (Bits == 4) {
                add_fours<R>(dot, _mm512_and_si512(numbers, low), x);
                x += 4 * R;
                numbers = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), low);
            }
            add_fours<R>(dot, numbers, x);
            x += 4 * R;
        }
        __m512 scale = widen(reinterpret_cast<const S*>(panel));
        panel += kInPanel * sizeof(S);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(group.steps[at + r]));
            result[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), step, result[r]);
        }
        if (offsets) {
            __m512 offset = widen(reinterpret_cast<const S*>(panel));
            panel += kInPanel * sizeof(S);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
                result[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(group.totals[at + r]), result[r]);
        }
        if (zeros) panel += kInPanel;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(total + r * kInPanel, result[r]);
}

template <size_t Bits, class S, int R = kInGroup>
LUCID_INLINE void multiply_group(size_t rows, float* total, const uint8_t* panel, const Group& group,
                                 const QuantizedWeight& w) {
    if constexpr (R > 0) {
        if (rows == R) return multiply_panel<Bits, S, R>(total, panel, group, w);
        multiply_group<Bits, S, R - 1>(rows, total, panel, group, w);
    }
}
#else
inline bool has_dots() { return false; } // so the function below is never called

template <size_t Bits, class S>
void multiply_group(size_t, float*, const uint8_t*, const Group&, const QuantizedWeight&) {}
#endif
