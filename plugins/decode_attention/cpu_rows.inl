// Products of a few query rows with the rows of a cache in its stored type; vector lanes hold elements of the width.
//
// With rows in the lanes, as in shared/cpu_products.inl, the few rows of a token would leave most lanes empty. Here a
// row of the cache is converted in registers and multiplied by up to kGroup query rows. Sums across lanes are computed
// for kLanes columns at once, so that lanes of the scores hold columns. If the width is not a multiple of a vector, the
// last vector of a row overlaps the one before it.

constexpr int kTogether = LUCID_ROW_COLUMNS; // columns whose scores are held in registers

// How rows of a given width are divided into vectors.
struct Cut {
    size_t width, vectors, padded, last; // the last vector begins at element `last`

    explicit Cut(size_t d)
        : width(d), vectors((d + kLanes - 1) / kLanes), padded(vectors * kLanes), last(d < kLanes ? 0 : d - kLanes) {}
    size_t begin(size_t vector) const { return vector + 1 == vectors ? last : vector * kLanes; }
    // Position of element k among `padded` floats; the overlapping elements of the last vector stay zero.
    size_t place(size_t k) const { return k + kLanes < padded ? k : k + padded - width; }
};

// Adds lanes at distance H of two vectors: lane i is a[i] + a[i ^ H] where bit H of i is clear, else b[i] + b[i ^ H].
template <int H, size_t... I>
LUCID_INLINE Vector join_lanes(Vector a, Vector b, std::index_sequence<I...>) {
    constexpr Integers own = {static_cast<int>(I & H ? kLanes + I : I)...};
#if LUCID_LANES == 16 // has shuffles of two vectors
    constexpr Integers other = {static_cast<int>(I & H ? kLanes + (I ^ H) : I ^ H)...};
    return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
#else
    constexpr Integers rest = {static_cast<int>(I & H ? I : kLanes + I)...};
    constexpr Integers across = {static_cast<int>(I ^ H)...};
    return __builtin_shuffle(a, b, own) + __builtin_shuffle(__builtin_shuffle(a, b, rest), across);
#endif
}

// Sums N vectors across their lanes: lane i of the result is the sum of vector (i / H) mod N over the lanes
// that equal i except in the bits H … N·H / 2.
template <int N, int H = 1>
LUCID_INLINE Vector join(const Vector* sums) {
    if constexpr (N == 1) {
        return sums[0];
    } else {
        Vector halves[N / 2];
#pragma GCC unroll 16
        for (int i = 0; i < N / 2; ++i)
            halves[i] = join_lanes<H>(sums[2 * i], sums[2 * i + 1], std::make_index_sequence<kLanes>());
        return join<N / 2, 2 * H>(halves);
    }
}

// The data that a product prefetches into the L2 cache: those `ahead` elements after columns `from` to `to` − 1.
struct Ahead {
    size_t ahead, from, to;

    // Whether to prefetch at this vector of a column: once per cache line, in columns `from` to `to` − 1 only.
    template <class S>
    LUCID_INLINE bool asks(size_t column, size_t vector) const {
        constexpr size_t kLine = std::max<size_t>(1, 64 / (kLanes * sizeof(S))); // vectors
        return vector % kLine == 0 && column - from < to - from;
    }
};

// scores[r][c] = Σ_k rows[r][k] · keys[c][k] for R rows and kLanes columns and, with Squares, squares[c] = Σ_k keys[c][k]².
// `fresh` is 0 for elements of the last vector that overlap the one before it, else 1; rows hold 0 there too.
template <int R, bool Squares, class S>
LUCID_INLINE void score_stored(float* scores, size_t stride, float* squares, const S* const* keys, const Cut& cut,
                               const float* rows, const float* fresh, Ahead next) {
    constexpr int kSums = R + (Squares ? 1 : 0), kSteps = kLanes / kTogether;
    Vector joined[kSums][kSteps];
    for (int step = 0; step < kSteps; ++step) {
        const S* const* column = keys + step * kTogether;
        Vector sums[kSums][kTogether];
        for (int s = 0; s < kSums; ++s)
            for (int c = 0; c < kTogether; ++c) sums[s][c] = Vector{};
        for (size_t u = 0; u < cut.vectors; ++u) {
            size_t at = cut.begin(u);
            Vector key[kTogether];
#pragma GCC unroll 4
            for (int c = 0; c < kTogether; ++c) key[c] = widen(column[c] + at);
            if (next.asks<S>(step * kTogether, u)) {
#pragma GCC unroll 4
                for (int c = 0; c < kTogether; ++c) __builtin_prefetch(column[c] + at + next.ahead, 0, 2);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                Vector row = load(rows + r * cut.padded + u * kLanes);
#pragma GCC unroll 4
                for (int c = 0; c < kTogether; ++c) sums[r][c] += key[c] * row;
            }
            if constexpr (Squares) {
                if (u + 1 == cut.vectors && cut.padded != cut.width) {
                    Vector once = load(fresh);
#pragma GCC unroll 4
                    for (int c = 0; c < kTogether; ++c) key[c] *= once;
                }
#pragma GCC unroll 4
                for (int c = 0; c < kTogether; ++c) sums[R][c] += key[c] * key[c];
            }
        }
#pragma GCC unroll 8
        for (int s = 0; s < kSums; ++s) joined[s][step] = join<kTogether>(sums[s]);
    }
#pragma GCC unroll 8
    for (int s = 0; s < kSums; ++s)
        store(s < R ? scores + s * stride : squares, join<kSteps, kTogether>(joined[s]));
}

// sums[r][u] += Σ_c weights[r][c] · values[c][u] for R rows and U vectors from vector `first`. As in weigh, the sum over
// the columns has its own accumulator, which is added at the end.
template <int R, int U, class S>
LUCID_INLINE void weigh_stored(float* sums, const float* weights, size_t stride, size_t columns, const S* const* values,
                               const Cut& cut, size_t first, Ahead next) {
    Vector total[R][U];
    size_t at[U];
    for (int u = 0; u < U; ++u) {
        at[u] = cut.begin(first + u);
        for (int r = 0; r < R; ++r) total[r][u] = Vector{};
    }
    for (size_t c = 0; c < columns; ++c) {
        Vector value[U];
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
            value[u] = widen(values[c] + at[u]);
            if (next.asks<S>(c, u)) __builtin_prefetch(values[c] + at[u] + next.ahead, 0, 2);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Vector weight = broadcast(weights[r * stride + c]);
#pragma GCC unroll 8
            for (int u = 0; u < U; ++u) total[r][u] += weight * value[u];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
            float* sum = sums + r * cut.padded + (first + u) * kLanes;
            store(sum, load(sum) + total[r][u]);
        }
}

// The same for the whole width.
template <int R, class S>
void weigh_stored_rows(float* sums, const float* weights, size_t stride, size_t columns, const S* const* values,
                       const Cut& cut, Ahead next) {
    constexpr int U = LUCID_GROUP_VECTORS;
    auto weigh = [&](auto vectors, size_t first) __attribute__((always_inline)) {
        weigh_stored<R, decltype(vectors)::value>(sums, weights, stride, columns, values, cut, first, next);
    };
    size_t first = 0;
    for (; first + U <= cut.vectors; first += U) weigh(std::integral_constant<int, U>(), first);
    switch (cut.vectors - first) {
    case 3: weigh(std::integral_constant<int, U - 1>(), first); break;
    case 2: weigh(std::integral_constant<int, U == 2 ? 1 : 2>(), first); break;
    case 1: weigh(std::integral_constant<int, 1>(), first); break;
    default: break;
    }
}

// Calls what(R, row) for rows 0 … count − 1, kGroup at a time and then for the rest; R is a compile-time constant.
template <class What>
LUCID_INLINE void in_groups(size_t count, What what) {
    size_t row = 0;
    for (; row + kGroup <= count; row += kGroup) what(std::integral_constant<int, kGroup>(), row);
    switch (count - row) {
    case 1: what(std::integral_constant<int, 1>(), row); break;
    case 2: what(std::integral_constant<int, 2>(), row); break;
    case 3: what(std::integral_constant<int, 3>(), row); break;
    case 4: what(std::integral_constant<int, 4>(), row); break;
    case 5: what(std::integral_constant<int, 5>(), row); break;
    default: break;
    }
}
