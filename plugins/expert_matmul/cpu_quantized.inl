// The products of rows and experts' matrices quantized in blocks to 4 or 8 bits. The matrix elements are converted to
// float in registers and multiplied there by several rows of X, which are not rounded.
//
// Vector lanes hold bytes of a matrix row. With 4 bits, a vector of bytes gives two vectors of elements: the low halves
// and the high halves; X is copied into this order. Sums are added in the same order for any number of rows.

constexpr int kMostRowsQuantized = kLanes == 16 ? 6 : 4; // rows of X whose sums fit into registers
constexpr size_t kExpertsAhead = 2048;                   // distance in bytes at which a matrix is prefetched

// Returns kLanes bytes as int32. GCC's __builtin_convertvector would convert them one by one.
LUCID_INLINE Integers widen_bytes(const uint8_t* from) {
#if LUCID_LANES == 16
    return reinterpret_cast<Integers>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif LUCID_LANES == 8
    return reinterpret_cast<Integers>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
    Bytes raw;
    std::memcpy(&raw, from, sizeof raw);
    return __builtin_convertvector(raw, Integers);
#endif
}

// Returns the low four bits of each element, minus 8.
LUCID_INLINE Vector centered_nibbles(Integers whole) {
#if LUCID_LANES == 16
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(whole), values); // reads only the low four bits of an index
#else
    return __builtin_convertvector((whole & 15) - 8, Vector);
#endif
}

// Rows of X, reordered to match a matrix's bytes, and the sums of their blocks, one per lane.
struct BlockRows {
    const float* x;    // [rows, stride]
    size_t stride;
    const float* sums; // [rows, blocks, kLanes]; read only if the matrices have offsets
};

// o[r][c] = Σ_b (scale[c][b] · Σ_k x[r][b][k] · (w[c][b][k] − half of the range) + offset[c][b] · Σ_k x[r][b][k])
// for R rows of X and C rows of a matrix.
template <size_t Bits, int R, int C, bool HasOffsets, class T, class S>
LUCID_INLINE void multiply_blocks(T* o, size_t o_stride, const BlockRows& rows, const uint8_t* w, const S* scales,
                                  const S* offsets, size_t blocks, size_t bytes) {
    constexpr int per = 8 / Bits;
    const float* x = rows.x;
    size_t x_stride = rows.stride;
    Vector total[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) total[r][c] = Vector{};
    for (size_t b = 0; b < blocks; ++b) {
        Vector part[R][C];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) part[r][c] = Vector{};
        for (size_t at = b * bytes; at < (b + 1) * bytes; at += kLanes) {
            Vector numbers[per][C];
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) {
                const uint8_t* from = w + c * blocks * bytes + at;
                __builtin_prefetch(from + kExpertsAhead, 0, 2); // in this or a later row
                Integers whole = widen_bytes(from);
                if constexpr (Bits == 8) {
                    numbers[0][c] = __builtin_convertvector(whole - 128, Vector);
                } else {
                    numbers[0][c] = centered_nibbles(whole);
                    numbers[1][c] = centered_nibbles(whole >> 4);
                }
            }
#pragma GCC unroll 2
            for (int p = 0; p < per; ++p)
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    Vector factor = load(x + r * x_stride + at * per + p * kLanes);
#pragma GCC unroll 16
                    for (int c = 0; c < C; ++c) part[r][c] = multiply_add(factor, numbers[p][c], part[r][c]);
                }
        }
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
            Vector scale = broadcast(to_float(scales[c * blocks + b]));
            for (int r = 0; r < R; ++r) total[r][c] = multiply_add(part[r][c], scale, total[r][c]);
            if constexpr (HasOffsets) {
                Vector offset = broadcast(to_float(offsets[c * blocks + b]));
                for (int r = 0; r < R; ++r)
                    total[r][c] = multiply_add(load(rows.sums + (r * blocks + b) * kLanes), offset, total[r][c]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) from_float(o[r * o_stride + c], sum(total[r][c]));
}

// The same for R = `count` up to kMostRowsQuantized, and `columns` rows of the matrix.
template <size_t Bits, bool HasOffsets, int R = kMostRowsQuantized, class T, class S>
LUCID_INLINE void multiply_quantized(size_t count, size_t columns, T* o, size_t o_stride, const BlockRows& rows,
                                     const uint8_t* w, const S* scales, const S* offsets, size_t blocks, size_t bytes) {
    if constexpr (R > 0) {
        if (count != R) {
            multiply_quantized<Bits, HasOffsets, R - 1>(count, columns, o, o_stride, rows, w, scales, offsets, blocks, bytes);
        } else {
            constexpr int C = R == 2 ? 2 : 1; // 1: row by row, as cpu_transposed.inl does for short rows
            size_t c = 0, row = blocks * bytes;
            for (; c + C <= columns; c += C)
                multiply_blocks<Bits, R, C, HasOffsets>(o + c, o_stride, rows, w + c * row, scales + c * blocks,
                                                        offsets + (HasOffsets ? c * blocks : 0), blocks, bytes);
            for (; c < columns; ++c)
                multiply_blocks<Bits, R, 1, HasOffsets>(o + c, o_stride, rows, w + c * row, scales + c * blocks,
                                                        offsets + (HasOffsets ? c * blocks : 0), blocks, bytes);
        }
    }
}

template <class T, class S>
struct QuantizedExpertJob {
    const QuantizedExpertArguments<T, S>& a;
    BlockRows rows; // sorted by expert
    T* o;           // [rows, columns], sorted by expert
    size_t parts;   // tasks per chosen expert
    size_t width;   // rows of the matrix per task, at most
};

template <size_t Bits, bool HasOffsets, class T, class S>
void quantized_expert_task(void* data, size_t index) {
    const QuantizedExpertJob<T, S>& job = *static_cast<QuantizedExpertJob<T, S>*>(data);
    const QuantizedExpertArguments<T, S>& a = job.a;
    const ExpertRows& own = a.chosen[index / job.parts];
    size_t first = index % job.parts * job.width, end = std::min(first + job.width, a.columns);
    size_t groups = (own.rows + kMostRowsQuantized - 1) / kMostRowsQuantized, bytes = a.depth / a.blocks * Bits / 8;
    size_t step = groups == 1 ? job.width : std::max<size_t>(24, (size_t{1} << 17) / std::max<size_t>(a.depth, 1));
    for (size_t c = first; c < end; c += step)
        for (size_t group = 0, row = 0; group < groups; ++group) {
            size_t next = own.rows * (group + 1) / groups, place = own.first + row, at = own.expert * a.columns + c;
            BlockRows rows{job.rows.x + place * job.rows.stride, job.rows.stride,
                           job.rows.sums + (HasOffsets ? place * a.blocks * kLanes : 0)};
            multiply_quantized<Bits, HasOffsets>(next - row, std::min(step, end - c), job.o + place * a.columns + c,
                                                 a.columns, rows, a.w + at * a.blocks * bytes, a.scales + at * a.blocks,
                                                 a.offsets + (HasOffsets ? at * a.blocks : 0), a.blocks, bytes);
            row = next;
        }
}

template <size_t Bits, bool HasOffsets, class T, class S>
void quantized_expert_matmul_of(const QuantizedExpertArguments<T, S>& a, const Pool& pool) {
    constexpr size_t per = 8 / Bits, lines = kLanes * per; // elements in a byte, and in a vector of bytes
    size_t stride = rounded_up(a.depth, 4 * kLanes) + 16; // not a power of two, as in weight_matmul_transposed
    Zeros<float> x(a.rows * stride);
    Zeros<T> o(a.rows * a.columns);
    for (size_t place = 0; place < a.rows; ++place)
        for (size_t k = 0; k < a.depth; ++k) {
            size_t in_line = k % lines, at = k - in_line + in_line % per * kLanes + in_line / per;
            x[place * stride + at] = to_float(a.x[a.order[place] * a.depth + k]);
        }
    Zeros<float> sums(HasOffsets ? a.rows * a.blocks * kLanes : 0);
    if constexpr (HasOffsets)
        for (size_t place = 0; place < a.rows; ++place)
            for (size_t k = 0; k < a.depth; k += kLanes) {
                float* sum = sums.data() + (place * a.blocks + k / (a.depth / a.blocks)) * kLanes;
                store(sum, load(sum) + load(x.data() + place * stride + k));
            }
    bool alone = a.rows * a.depth * a.columns < kAlone;
    size_t wanted = alone ? 1 : (2 * kMostTasks + a.chosen_count - 1) / a.chosen_count;
    size_t width = rounded_up((a.columns + wanted - 1) / wanted, 24), parts = (a.columns + width - 1) / width;
    QuantizedExpertJob<T, S> job{a, {x.data(), stride, sums.data()}, o.data(), parts, width};
    size_t tasks = a.chosen_count * parts;
    auto* run = quantized_expert_task<Bits, HasOffsets, T, S>;
    if (alone)
        for (size_t task = 0; task < tasks; ++task) run(&job, task);
    else
        pool.run(run, tasks, &job);
    for (size_t place = 0; place < a.rows; ++place)
        std::memcpy(a.o + a.order[place] * a.columns, o.data() + place * a.columns, a.columns * sizeof(T));
}

template <class T, class S>
void quantized_expert_matmul(const QuantizedExpertArguments<T, S>& a, const Pool& pool) {
    if (a.rows == 0 || a.columns == 0) return;
    if (a.bits == 4)
        a.offsets != nullptr ? quantized_expert_matmul_of<4, true>(a, pool) : quantized_expert_matmul_of<4, false>(a, pool);
    else
        a.offsets != nullptr ? quantized_expert_matmul_of<8, true>(a, pool) : quantized_expert_matmul_of<8, false>(a, pool);
}
