// The two matrix products of the CPU kernels for several tokens, scores and weighted sums, with sums in registers.
//
// Scores: each lane of a vector belongs to a different row of a tile (a query, or a key whose Y is solved for), and the
// loop runs over columns (earlier keys). Scores are stored transposed, [column][row], so maxima and sums over columns
// need no operation across lanes. Weighted sums: lanes hold elements of a row of values. K and Y need not be packed.

constexpr size_t kRows = 96;                            // rows of a tile, a multiple of kPanel and kGroup
constexpr size_t kColumns = 96;                         // columns of a tile
constexpr size_t kPanel = LUCID_PANEL_VECTORS * kLanes; // rows of the first product held in registers
constexpr size_t kGroup = 6;                            // rows of the second product held in registers
static_assert(kRows % kPanel == 0 && kRows % kGroup == 0, "tiles are whole");

LUCID_INLINE size_t rounded_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// scores[c][v] = Σ_k keys[c][k] · rows[k][v], for C columns and V vectors of rows; rows are transposed, [k][stride].
template <int C, int V>
LUCID_INLINE void score(Vector (&scores)[C][V], const float* keys, size_t width, const float* rows, size_t stride) {
    for (int c = 0; c < C; ++c)
        for (int v = 0; v < V; ++v) scores[c][v] = Vector{};
    for (size_t k = 0; k < width; ++k) {
        Vector row[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) row[v] = load(rows + k * stride + v * kLanes);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
            Vector key = broadcast(keys[c * width + k]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) scores[c][v] += key * row[v];
        }
    }
}

// Calls finish(column, scores of V vectors) for every column of a tile with V vectors of rows. It computes C columns at
// a time, and the rest C/2, C/4, … at a time: a single column would be bound by the latency of its own sums.
template <int V, int C = LUCID_PANEL_COLUMNS, class Finish>
LUCID_INLINE void score_columns(const float* keys, size_t columns, size_t width, const float* rows, size_t stride,
                                Finish finish, size_t column = 0) {
    for (; column + C <= columns; column += C) {
        Vector scores[C][V];
        score<C, V>(scores, keys + column * width, width, rows, stride);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) finish(column + c, scores[c]);
    }
    if constexpr (C > 1)
        if (column < columns) score_columns<V, C / 2>(keys, columns, width, rows, stride, finish, column);
}

// A strided matrix of weights: the weight of row r for column c is at[r · row_step + c · column_step].
struct Weights {
    const float* at;
    size_t row_step, column_step;

    Weights row(size_t first) const { return {at + first * row_step, row_step, column_step}; }
};

// Calls merge(r, sum, total) to update sum = sums[r][u] with total = Σ_c weights[r, c] · values[c][u], for R rows and U
// vectors of the width. The total starts at zero and is merged once at the end: adding terms one by one to a large sum
// would round each of them to the sum's precision.
template <int R, int U, class Merge>
LUCID_INLINE void weigh(float* sums, size_t sums_stride, Weights weights, size_t columns, const float* values,
                        size_t values_stride, Merge merge) {
    Vector total[R][U];
    for (int r = 0; r < R; ++r)
        for (int u = 0; u < U; ++u) total[r][u] = Vector{};
    for (size_t c = 0; c < columns; ++c) {
        Vector value[U];
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) value[u] = load(values + c * values_stride + u * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Vector weight = broadcast(weights.at[c * weights.column_step + r * weights.row_step]);
#pragma GCC unroll 8
            for (int u = 0; u < U; ++u) total[r][u] += weight * value[u];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
            float* at = sums + r * sums_stride + u * kLanes;
            Vector sum = load(at);
            merge(r, sum, total[r][u]);
            store(at, sum);
        }
}

// The same for R rows and the whole width, a multiple of kLanes.
template <int R, class Merge>
LUCID_INLINE void merge_rows(float* sums, Weights weights, size_t columns, const float* values, size_t width,
                             Merge merge) {
    constexpr int U = LUCID_GROUP_VECTORS;
    size_t at = 0;
    for (; at + U * kLanes <= width; at += U * kLanes)
        weigh<R, U>(sums + at, width, weights, columns, values + at, width, merge);
    if (U > 3 && at + 3 * kLanes == width)
        weigh<R, 3>(sums + at, width, weights, columns, values + at, width, merge);
    else if (U > 2 && at + 2 * kLanes == width)
        weigh<R, 2>(sums + at, width, weights, columns, values + at, width, merge);
    else if (at + kLanes == width)
        weigh<R, 1>(sums + at, width, weights, columns, values + at, width, merge);
}

// sums[r] ±= Σ_c weights[c][r] · values[c], for R rows and the whole width.
template <bool Subtract, int R>
void weigh_rows(float* sums, const float* weights, size_t weights_stride, size_t columns, const float* values,
                size_t width) {
    merge_rows<R>(sums, {weights, 1, weights_stride}, columns, values, width,
                  [](int, Vector& sum, const Vector& total) { sum = Subtract ? sum - total : sum + total; });
}
