// Causal attention with an online softmax: each task computes a tile of query rows of one head.

constexpr float kHidden = -2e30f; // score of masked tokens: exp(kHidden − peak) is 0 even if the peak is kNoPeak
constexpr float kNoPeak = -1e30f; // peak of a row that has seen no token yet

template <class T>
struct Attend {
    const AttentionArguments<T>& a;
    size_t tiles; // per query head
    std::atomic<size_t> next{0};
};

struct QueryTile {
    const float* queries; // [D][kRows], transposed, over √d
    float* peak;          // [kRows]: largest score so far
    float* total;         // [kRows]: sum of the weights so far
    float* sums;          // [kRows][padded width]: weighted values so far
    float* weights;       // [kColumns][kRows]: scores, then weights
    float* key_room;      // [kColumns][D]
    float* value_room;    // [kColumns][padded width]
    size_t rows, rounded, padded; // query rows; rounded up to whole panels; D rounded up to whole vectors
};

// Masks padding and, for each row r, the columns after its own, which is `offset` + r.
inline void hide(const QueryTile& tile, size_t columns, ptrdiff_t offset, const bool* mask) {
    for (size_t column = 0; column < columns; ++column) {
        float* weights = tile.weights + column * kRows;
        ptrdiff_t first_seeing = static_cast<ptrdiff_t>(column) - offset;
        if (!mask[column]) first_seeing = static_cast<ptrdiff_t>(tile.rounded);
        ptrdiff_t hidden = std::clamp<ptrdiff_t>(first_seeing, 0, static_cast<ptrdiff_t>(tile.rounded));
        for (ptrdiff_t row = 0; row < hidden; ++row) weights[row] = kHidden;
    }
}

// Turns scores into weights, rescales the sums and totals so far to the new peaks, and adds the weights to the totals.
inline void soften(const QueryTile& tile, size_t columns) {
    for (size_t first = 0; first < tile.rounded; first += kLanes) {
        float* weights = tile.weights + first;
        Vector before = load(tile.peak + first), peak = before;
        for (size_t column = 0; column < columns; ++column) peak = larger(peak, load(weights + column * kRows));
        Vector total{};
        for (size_t column = 0; column < columns; ++column) {
            Vector weight = exponential(load(weights + column * kRows) - peak);
            store(weights + column * kRows, weight);
            total += weight;
        }
        Vector shrink = exponential(before - peak);
        store(tile.peak + first, peak);
        store(tile.total + first, load(tile.total + first) * shrink + total);
        float factors[kLanes];
        store(factors, shrink);
        for (size_t lane = 0; lane < kLanes; ++lane) {
            if (factors[lane] == 1.0f) continue;
            float* sums = tile.sums + (first + lane) * tile.padded;
            for (size_t k = 0; k < tile.padded; k += kLanes) store(sums + k, load(sums + k) * factors[lane]);
        }
    }
}

template <class T>
void attend_columns(const QueryTile& tile, const T* keys, const T* values, const bool* mask, size_t columns,
                    ptrdiff_t offset, size_t width) {
    if (none_true(mask, columns)) return;
    constexpr int V = LUCID_PANEL_VECTORS;
    bool whole = all_true(mask, columns);
    const float* k = as_tile(keys, width, width, columns, mask, whole, tile.key_room);
    const float* y = as_tile(values, width, tile.padded, columns, mask, whole, tile.value_room);
    for (size_t first = 0; first < tile.rounded; first += kPanel) {
        float* weights = tile.weights + first;
        score_columns<V>(k, columns, width, tile.queries + first, kRows, [&](size_t column, Vector(&scores)[V]) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) store(weights + column * kRows + v * kLanes, scores[v]);
        });
    }
    if (!whole || offset + 1 < static_cast<ptrdiff_t>(columns)) hide(tile, columns, offset, mask);
    soften(tile, columns);
    for (size_t row = 0; row < tile.rounded; row += kGroup)
        weigh_rows<false, kGroup>(tile.sums + row * tile.padded, tile.weights + row, kRows, columns, y, tile.padded);
}

// Adds a padded token's own key and value to its row: its column was masked for all rows.
template <class T>
void see_itself(const QueryTile& tile, size_t row, const T* key, const T* value, size_t width) {
    float score = 0.0f;
    for (size_t k = 0; k < width; ++k) score += tile.queries[k * kRows + row] * to_float(key[k]);
    float peak = std::max(tile.peak[row], score);
    float shrink = std::exp(tile.peak[row] - peak), weight = std::exp(score - peak);
    tile.total[row] = tile.total[row] * shrink + weight;
    for (size_t k = 0; k < width; ++k) {
        float& sum = tile.sums[row * tile.padded + k];
        sum = sum * shrink + weight * to_float(value[k]);
    }
}

template <class T>
void attend_tile(const AttentionArguments<T>& a, size_t head, size_t number) {
    size_t d = a.width, first = number * kRows, rows = std::min(kRows, a.tokens - first), past = a.total - a.tokens;
    size_t padded = rounded_up(d, kLanes), key_head = head / a.groups;
    const bool* mask = a.mask + key_head / a.heads * a.total;
    const T *keys = a.k + key_head * a.total * d, *values = a.y + key_head * a.total * d;
    const T* queries = a.q + (head * a.tokens + first) * d;

    Scratch scratch(kRows * (2 * d + 2 * padded + kColumns + 2), 7);
    QueryTile tile{};
    float* transposed = scratch.take(kRows * d);
    tile.queries = transposed;
    tile.peak = scratch.take(kRows);
    tile.total = scratch.take(kRows);
    tile.sums = scratch.take(kRows * padded);
    tile.weights = scratch.take(kColumns * kRows);
    tile.key_room = scratch.take(kColumns * d);
    tile.value_room = scratch.take(kColumns * padded);
    tile.rows = rows;
    tile.rounded = rounded_up(rows, kPanel);
    tile.padded = padded;
    copy_transposed(transposed, kRows, queries, d, rows, tile.rounded, nullptr, 1.0f / std::sqrt(static_cast<float>(d)));
    std::fill(tile.peak, tile.peak + tile.rounded, kNoPeak);
    std::fill(tile.total, tile.total + tile.rounded, 0.0f);
    std::fill(tile.sums, tile.sums + tile.rounded * padded, 0.0f);

    size_t seen = past + first + rows;
    for (size_t at = 0; at < seen; at += kColumns)
        attend_columns(tile, keys + at * d, values + at * d, mask + at, std::min(kColumns, seen - at),
                       static_cast<ptrdiff_t>(past + first) - static_cast<ptrdiff_t>(at), d);
    T* out = a.o + (head * a.tokens + first) * d;
    for (size_t row = 0; row < rows; ++row) {
        size_t token = past + first + row;
        if (!mask[token]) see_itself(tile, row, keys + token * d, values + token * d, d);
        for (size_t k = 0; k < d; ++k) from_float(out[row * d + k], tile.sums[row * padded + k] / tile.total[row]);
    }
}

template <class T>
void attend_task(void* data, size_t) {
    Attend<T>& attend = *static_cast<Attend<T>*>(data);
    size_t heads = attend.a.batch * attend.a.heads * attend.a.groups, ticket = attend.next.fetch_add(1);
    attend_tile(attend.a, ticket % heads, attend.tiles - 1 - ticket / heads); // most columns first
}

template <class T>
void attention(const AttentionArguments<T>& arguments, const Pool& pool) {
    Attend<T> attend{arguments, (arguments.tokens + kRows - 1) / kRows};
    size_t heads = arguments.batch * arguments.heads * arguments.groups;
    if (heads != 0 && arguments.tokens != 0) pool.run(attend_task<T>, heads * attend.tiles, &attend);
}
