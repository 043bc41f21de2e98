// Vectors of kLanes floats in the compiler's vector extension, and exp on them.

constexpr size_t kLanes = LUCID_LANES;

typedef float Vector __attribute__((vector_size(LUCID_LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LUCID_LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LUCID_LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LUCID_LANES * 4), aligned(4), may_alias));

#define LUCID_INLINE inline __attribute__((always_inline))

LUCID_INLINE Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
LUCID_INLINE void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
LUCID_INLINE Vector broadcast(float value) { return value - Vector{}; }
LUCID_INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// Keeps a loaded vector in a register; otherwise the compiler may load it again for each use, which is slower.
LUCID_INLINE void hold(Vector& value) {
#if LUCID_LANES == 16
    asm("" : "+v"(value));
#elif defined(__x86_64__)
    asm("" : "+x"(value));
#elif defined(__aarch64__)
    asm("" : "+w"(value));
#else
    (void)value;
#endif
}

// Returns a · b + c, rounded once on processors with FMA; the compiler would use FMA in some loops and not in others.
LUCID_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
#if LUCID_LANES == 16
    return _mm512_fmadd_ps(a, b, c);
#elif LUCID_LANES == 8
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// Returns whether any lane of a is larger than the same lane of b.
LUCID_INLINE bool any_larger(Vector a, Vector b) {
#if LUCID_LANES == 16
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
#elif LUCID_LANES == 8
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
#else
    bool any = false;
    for (size_t lane = 0; lane < kLanes; ++lane) any |= a[lane] > b[lane];
    return any;
#endif
}

LUCID_INLINE Vector root(Vector value) {
#if LUCID_LANES == 16
    return _mm512_sqrt_ps(value);
#elif LUCID_LANES == 8
    return _mm256_sqrt_ps(value);
#else
    for (size_t lane = 0; lane < kLanes; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
#endif
}

// Copies bytes that are not read soon, with streaming stores (not in portable kernels), which bypass the caches.
inline void copy_past_caches(const void* from, void* to, size_t bytes) {
#if LUCID_LANES >= 8
    const char* source = static_cast<const char*>(from);
    char* target = static_cast<char*>(to);
    size_t at = std::min((64 - reinterpret_cast<uintptr_t>(target) % 64) % 64, bytes); // up to the next cache line
    std::memcpy(target, source, at);
    for (; at + 64 <= bytes; at += 64) {
        const float* line = reinterpret_cast<const float*>(source + at);
        float* written = reinterpret_cast<float*>(target + at);
#if LUCID_LANES == 16
        _mm512_stream_ps(written, _mm512_loadu_ps(line));
#else
        _mm256_stream_ps(written, _mm256_loadu_ps(line));
        _mm256_stream_ps(written + 8, _mm256_loadu_ps(line + 8));
#endif
    }
    std::memcpy(target + at, source + at, bytes - at);
    _mm_sfence(); // before another thread reads it
#else
    std::memcpy(to, from, bytes);
#endif
}

// Returns the largest lane, comparing halves of the vector recursively.
template <size_t Lanes, class E>
LUCID_INLINE E largest_lane(const E* lanes) {
    if constexpr (Lanes == 1) {
        return *lanes;
    } else {
        typedef E Part __attribute__((vector_size(Lanes * 2), aligned(4), may_alias));
        Part low = *reinterpret_cast<const Part*>(lanes), high = *reinterpret_cast<const Part*>(lanes + Lanes / 2);
        Part more = low < high ? high : low;
        return largest_lane<Lanes / 2>(reinterpret_cast<const E*>(&more));
    }
}

LUCID_INLINE float largest(Vector value) { return largest_lane<kLanes>(reinterpret_cast<const float*>(&value)); }
LUCID_INLINE int32_t largest(Integers value) { return largest_lane<kLanes>(reinterpret_cast<const int32_t*>(&value)); }

// Returns the sum of the lanes, adding halves of the vector recursively.
template <size_t Lanes, class E>
LUCID_INLINE E sum_lanes(const E* parts) {
    if constexpr (Lanes == 1) {
        return *parts;
    } else {
        typedef E Part __attribute__((vector_size(Lanes * 2), aligned(4), may_alias));
        Part both = *reinterpret_cast<const Part*>(parts) + *reinterpret_cast<const Part*>(parts + Lanes / 2);
        return sum_lanes<Lanes / 2>(reinterpret_cast<const E*>(&both));
    }
}

LUCID_INLINE float sum(Vector value) { return sum_lanes<kLanes>(reinterpret_cast<const float*>(&value)); }
LUCID_INLINE int32_t sum(Integers value) { return sum_lanes<kLanes>(reinterpret_cast<const int32_t*>(&value)); }

// Returns exp(x) for x ≤ 88, with an error of at most 1.01 ulp; 0 below −87 (no subnormal results).
// x = n·ln 2 + r with |r| ≤ ln 2 / 2; exp(r) is computed by its minimax polynomial of degree 6.
LUCID_INLINE Vector exponential(Vector x) {
    const Vector shifter = broadcast(12582912.0f); // 1.5·2²³: adding it rounds to an integer, kept in the low bits
    Vector shifted = x * 1.44269504088896341f + shifter;
    Vector n = shifted - shifter;
    Vector r = x - n * 0.693145751953125f; // ln 2 in two parts; the product with the first is exact
    r = r - n * 1.42860682030941723212e-6f;
    Vector p = r * 1.381446724e-3f + 8.368780836e-3f;
    p = p * r + 4.166839272e-2f;
    p = p * r + 1.666651964e-1f;
    p = p * r + 4.999999404e-1f;
    p = (p * r) * r + r;
    p = p + 1.0f;
    Bits exponent = reinterpret_cast<Bits>(shifted) << 23; // unsigned, since it wraps around far below −87
    Vector scaled = reinterpret_cast<Vector>(reinterpret_cast<Bits>(p) + exponent);
    return x < -87.0f ? Vector{} : scaled;
}

// Transposes a square: swaps blocks of Step lanes between rows that are Step apart, then does the same with Step / 2.
template <size_t Step = kLanes / 2>
LUCID_INLINE void transpose(Vector (&rows)[kLanes]) {
    Integers first, second;
    for (int lane = 0; lane < static_cast<int>(kLanes); ++lane) {
        bool is_high = lane & Step;
        first[lane] = is_high ? lane - Step + kLanes : lane;
        second[lane] = is_high ? lane + kLanes : lane + Step;
    }
#pragma GCC unroll 16
    for (size_t row = 0; row < kLanes; ++row) {
        if (row & Step) continue;
        Vector low = rows[row], high = rows[row + Step];
        rows[row] = __builtin_shuffle(low, high, first);
        rows[row + Step] = __builtin_shuffle(low, high, second);
    }
    if constexpr (Step > 1) transpose<Step / 2>(rows);
}
