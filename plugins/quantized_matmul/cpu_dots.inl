// The inner loops of quantized_matmul for AVX2 and AVX-512 VNNI (vpdpbusd adds four products of bytes to each lane).
// Other AVX-512 kernels also run on processors without VNNI, so only these functions are compiled for it.

#if LUCID_LANES == 16
#define LUCID_DOTS __attribute__((target("avx512vnni")))

inline bool has_dots() {
    static const bool has = __builtin_cpu_supports("avx512vnni");
    return has;
}

// dot[r] += four elements of row r times those of each column. With the intrinsic, GCC would copy every sum twice.
template <int R>
LUCID_DOTS LUCID_INLINE void add_fours(__m512i (&dot)[R], __m512i numbers, const int8_t* x) {
    typedef int32_t Four __attribute__((aligned(4), may_alias));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(dot[r]) : "v"(numbers), "m"(reinterpret_cast<const Four*>(x)[r]));
}

// dot[r] = sums[r] · zero[c]: what the zero points add to the products of a block; without them, sums[r].
template <size_t Bits, int R>
LUCID_INLINE void start_sums(__m512i (&dot)[R], const int32_t* sums, const uint8_t* zeros) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) dot[r] = _mm512_set1_epi32(sums[r]);
    if (zeros == nullptr) return;
    __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
    __m512i zero = _mm512_cvtepu8_epi32(Bits == 8 ? stored : _mm_and_si128(stored, _mm_set1_epi8(15)));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) dot[r] = _mm512_mullo_epi32(dot[r], zero);
}

// result[r] += dot[r] · scale[c] · step[r] + offset[c] · totals[r], for a block whose first row in the group is `at`.
template <class S, int R>
LUCID_INLINE void add_block(__m512 (&result)[R], const __m512i (&dot)[R], const S* scales, const Group& group, size_t at,
                            const QuantizedWeight& w) {
    __m512 scale = widen(scales);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(group.steps[at + r]));
        result[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), step, result[r]);
    }
    if (w.offsets == nullptr) return;
    __m512 offset = widen(scales + kInPanel);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) result[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(group.totals[at + r]), result[r]);
}

// total[r][c] = Σ_b (step[b][r] · scale[b][c] · Σ_k x[b][r][k] · (w[b][k][c] − zero[b][c]) + totals[b][r] · offset[b][c])
// for R rows. The hardware prefetches the contiguous panel; additional prefetch instructions made the product of
// one row take 1.2 times as long.
template <size_t Bits, class S, int R>
LUCID_DOTS void multiply_panel(float* total, const uint8_t* panel, const Group& group, const QuantizedWeight& w) {
    const __m512i low = _mm512_set1_epi8(15);
    const PanelSizes sizes(w);
    const int8_t* x = group.numbers;
    __m512 result[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) result[r] = _mm512_setzero_ps();
    for (size_t at = 0; at < w.blocks * R; at += R) {
        __m512i dot[R];
        start_sums<Bits, R>(dot, group.sums + at, w.zero_points != nullptr ? panel + sizes.block - kInPanel : nullptr);
        for (const uint8_t* end = panel + sizes.numbers; panel < end; panel += kLine) {
            __m512i numbers = _mm512_loadu_si512(panel);
            if constexpr (Bits == 4) {
                add_fours<R>(dot, _mm512_and_si512(numbers, low), x);
                x += 4 * R;
                numbers = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), low);
            }
            add_fours<R>(dot, numbers, x);
            x += 4 * R;
        }
        add_block<S, R>(result, dot, reinterpret_cast<const S*>(panel), group, at, w);
        panel += sizes.block - sizes.numbers;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(total + r * kInPanel, result[r]);
}
#elif LUCID_LANES == 8
// AVX2's vpmaddubsw multiplies pairs of bytes and adds two products in 16 bits.
inline bool has_dots() { return true; }

constexpr int kParts = kInPanel / kLanes; // vectors that hold four elements of each column

// part[r][p] += four elements of row r times those of vector p's columns. With intrinsics, GCC would spill the sums.
template <int R>
LUCID_INLINE void add_fours(__m256i (&part)[R * kParts], const __m256i (&numbers)[kParts], const int8_t* x) {
#pragma GCC unroll 16
    for (int i = 0; i < R * kParts; ++i) {
        int32_t four;
        std::memcpy(&four, x + i / kParts * 4, sizeof four);
        __m256i row = _mm256_set1_epi32(four), product;
        asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(part[i]), "=&x"(product) : "x"(numbers[i % kParts]), "x"(row));
    }
}

// dot[r][p] += the products of up to 32 elements of each column; 16 bits hold 8 · 2 products of at most 15 · 127.
// So 8-bit elements are multiplied in 4-bit halves; `Shifts` are the halves' first bits, `weight` their value, 1 or 16.
template <int R, int... Shifts>
LUCID_INLINE void add_numbers(__m256i (&dot)[R * kParts], const uint8_t* line, const uint8_t* end, const int8_t* x, short weight) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i part[R * kParts];
#pragma GCC unroll 16
    for (int i = 0; i < R * kParts; ++i) part[i] = __m256i{};
    for (; line < end; line += kLine)
        for (int shift : {Shifts...}) {
            __m256i numbers[kParts];
#pragma GCC unroll 2
            for (int p = 0; p < kParts; ++p) {
                __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line) + p);
                numbers[p] = _mm256_and_si256(_mm256_srli_epi16(stored, shift), low);
            }
            add_fours<R>(part, numbers, x);
            x += 4 * R;
        }
#pragma GCC unroll 16
    for (int i = 0; i < R * kParts; ++i)
        dot[i] = _mm256_add_epi32(dot[i], _mm256_madd_epi16(part[i], _mm256_set1_epi16(weight)));
}

// Computes the same as with AVX-512.
template <size_t Bits, class S, int R>
void multiply_panel(float* total, const uint8_t* panel, const Group& group, const QuantizedWeight& w) {
    constexpr int kSums = R * kParts;
    constexpr size_t kMost = kLine * Bits; // bytes of 32 elements of each column
    constexpr size_t kPer = kInPanel * Bits / 8; // bytes of one element of each column
    const PanelSizes sizes(w);
    const bool zeros = w.zero_points != nullptr, offsets = w.offsets != nullptr;
    const int8_t* x = group.numbers;
    const float *steps = group.steps, *totals = group.totals;
    Vector result[kSums];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) result[i] = Vector{};
    for (size_t at = 0; at < w.blocks * R; at += R) {
        __m256i dot[kSums];
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) dot[i] = _mm256_set1_epi32(group.sums[at + i / kParts]);
        if (zeros) {
#pragma GCC unroll 16
            for (int i = 0; i < kSums; ++i) {
                Integers zero = widen_bytes(panel + sizes.block - kInPanel + i % kParts * kLanes) & ((1 << Bits) - 1);
                dot[i] = _mm256_mullo_epi32(dot[i], reinterpret_cast<__m256i>(zero));
            }
        }
        for (size_t done = 0; done < sizes.numbers; done += kMost) {
            const uint8_t *line = panel + done, *end = panel + std::min(done + kMost, sizes.numbers);
            const int8_t* from = x + done / kPer * R;
            if constexpr (Bits == 4) {
                add_numbers<R, 0, 4>(dot, line, end, from, 1);
            } else {
                add_numbers<R, 0>(dot, line, end, from, 1);
                add_numbers<R, 4>(dot, line, end, from, 16);
            }
        }
        x += sizes.numbers / kPer * R;
        const S* scales = reinterpret_cast<const S*>(panel + sizes.numbers);
        panel += sizes.block;
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) {
            Vector product = __builtin_convertvector(reinterpret_cast<Integers>(dot[i]), Vector);
            result[i] = multiply_add(product, widen(scales + i % kParts * kLanes) * steps[at + i / kParts], result[i]);
        }
        if (offsets) {
#pragma GCC unroll 16
            for (int i = 0; i < kSums; ++i) {
                Vector offset = widen(scales + kInPanel + i % kParts * kLanes);
                result[i] = multiply_add(offset, broadcast(totals[at + i / kParts]), result[i]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) store(total + i / kParts * kInPanel + i % kParts * kLanes, result[i]);
}
#else
inline bool has_dots() { return false; } // so the operators call none of the functions below

template <size_t Bits, class S>
void multiply_group(size_t, float*, const uint8_t*, const Group&, const QuantizedWeight&) {}
#endif

#if LUCID_LANES >= 8
template <size_t Bits, class S, int R = kInGroup>
LUCID_INLINE void multiply_group(size_t rows, float* total, const uint8_t* panel, const Group& group,
                                 const QuantizedWeight& w) {
    if constexpr (R > 0) {
        if (rows == R) return multiply_panel<Bits, S, R>(total, panel, group, w);
        multiply_group<Bits, S, R - 1>(rows, total, panel, group, w);
    }
}
#endif
