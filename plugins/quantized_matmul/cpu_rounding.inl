// Rounds rows of X to int8 in blocks, for the product with a 4- or 8-bit block-quantized weight packed into panels.
//
// The products of a block are summed exactly, as integers. The sums are scaled and added in float32, block after block:
// the order is the same for any number of rows and threads, and a row's result does not depend on other rows.
//
// Rows are interleaved in groups: a run of elements of each row of the group, in the order of a panel, then the next run. A
// run has 4 elements, or with AMX as many as a tile is wide.

constexpr size_t kInGroup = LUCID_LANES == 16 ? 12 : 4; // rows whose sums fit into registers
constexpr size_t kLeastTasks = 16;                // fewest tasks of a parallel product, if it has that many panels
constexpr size_t kTaskProducts = size_t{1} << 21; // multiplications per task of larger products
constexpr float kInt8Levels = 127.0f;
constexpr float kLargest = 3.40282347e38f; // the largest float32

// Rows rounded to int8, group after group; the depth is ordered as in a panel.
struct RoundedRows {
    int8_t* numbers; // per group: [depth / run][rows of the group][run]
    float* steps;    // per group: [blocks][rows of the group]: a block's scale
    int32_t* sums;   // per group: [blocks][rows of the group]: −(a block's sum), times half the range if no zero_points
    float* totals;   // per group: [blocks][rows of the group]: a block's sum before rounding; null if W has no offsets
};

// One group of rounded rows.
struct Group {
    const int8_t* numbers;
    const float* steps;
    const int32_t* sums;
    const float* totals;
};

template <class T>
struct QuantizedMatMulJob {
    const QuantizedMatMulArguments<T>& a;
    RoundedRows rows;
    size_t run, groups, tasks;

    bool tiles() const { return run > 4; }

    size_t first_row(size_t group) const { return a.rows * group / groups; }

    // Returns the group whose first row is `row`.
    Group group(size_t row) const {
        size_t at = row * a.w.blocks;
        return {rows.numbers + row * a.depth, rows.steps + at, rows.sums + at, rows.totals != nullptr ? rows.totals + at : nullptr};
    }
};

// Sixteen elements of a row. in_fours puts them in the order of a panel: with 4 bits, four bytes hold eight elements,
// those at even places in the low halves and those at odd places in the high halves.
typedef int8_t Sixteen __attribute__((vector_size(16)));

LUCID_INLINE Sixteen narrow(const Integers* whole) {
#if LUCID_LANES == 16
    return reinterpret_cast<Sixteen>(_mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(*whole)));
#elif LUCID_LANES == 8
    __m256i pairs = _mm256_packs_epi32(reinterpret_cast<__m256i>(whole[0]), reinterpret_cast<__m256i>(whole[1]));
    pairs = _mm256_permute4x64_epi64(pairs, 0xd8);
    return reinterpret_cast<Sixteen>(_mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
#else
    Sixteen bytes;
    for (size_t i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>(whole[i / kLanes][i % kLanes]);
    return bytes;
#endif
}

template <size_t Bits>
LUCID_INLINE Sixteen in_fours(Sixteen numbers) {
    if constexpr (Bits == 8) return numbers;
    return __builtin_shuffle(numbers, Sixteen{0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15});
}

// Returns a block's largest magnitude, which will be rounded to 127; it is not finite if an element is not finite.
template <class T>
LUCID_INLINE float largest_magnitude(const T* x, size_t block) {
    Integers found{}; // magnitudes are compared as bit patterns, of which NaN's are the largest
    for (size_t k = 0; k < block; k += kLanes) {
        Integers bits = reinterpret_cast<Integers>(widen(x + k)) & 0x7fffffff;
        found = bits > found ? bits : found;
    }
    int32_t most = largest(found);
    float magnitude;
    std::memcpy(&magnitude, &most, sizeof magnitude);
    return magnitude;
}

// Rounds one of a group's `count` rows to multiples of (the block's largest magnitude) / 127, to nearest, ties to even.
// A block with NaN or an infinity becomes zeros with NaN or infinity as its step, so that all its products are NaN.
template <size_t Bits, class T>
void round_row(const QuantizedMatMulJob<T>& job, size_t first, size_t count, size_t row) {
    const Vector shifter = broadcast(12582912.0f); // 1.5·2²³: adding it rounds to an integer in the low bits
    const Integers none = reinterpret_cast<Integers>(shifter);
    size_t blocks = job.a.w.blocks, block = job.a.depth / blocks;
    const T* x = job.a.x + (first + row) * job.a.depth;
    int8_t* numbers = job.rows.numbers + first * job.a.depth + row * job.run;
    size_t written = 0; // of a run
    for (size_t b = 0; b < blocks; ++b) {
        size_t at = first * blocks + b * count + row;
        float step = largest_magnitude(x, block) / kInt8Levels, inverse = 1.0f / step;
        bool empty = !(step <= kLargest) || !(inverse <= kLargest); // true too if all are (nearly) zero
        Vector total{};
        Integers whole_sum{};
        for (size_t k = 0; k < block; k += 16, x += 16) {
            Integers whole[16 / kLanes];
            for (size_t i = 0; i < 16 / kLanes; ++i) {
                Vector value = widen(x + i * kLanes);
                total += value;
                whole[i] = empty ? Integers{} : reinterpret_cast<Integers>(value * inverse + shifter) - none;
                whole_sum += whole[i];
            }
            Sixteen bytes = in_fours<Bits>(narrow(whole));
            for (size_t four = 0; four < 4; ++four, numbers += 4, written += 4) {
                if (written == job.run) numbers += job.run * (count - 1), written = 0;
                std::memcpy(numbers, reinterpret_cast<const int8_t*>(&bytes) + four * 4, 4);
            }
        }
        if (job.rows.totals != nullptr) job.rows.totals[at] = sum(total);
        job.rows.steps[at] = step;
        job.rows.sums[at] = -sum(whole_sum) * (job.a.w.zero_points != nullptr ? 1 : int32_t{1} << (Bits - 1));
    }
}

template <size_t Bits, class T>
void round_group(void* data, size_t group) {
    const QuantizedMatMulJob<T>& job = *static_cast<QuantizedMatMulJob<T>*>(data);
    size_t first = job.first_row(group), count = job.first_row(group + 1) - first;
    for (size_t row = 0; row < count; ++row) round_row<Bits>(job, first, count, row);
}
