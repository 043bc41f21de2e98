// Y_i = L_ii⁻¹ (V_i − Σ_{j<i} E_ij Y_j): each task solves a tile of rows of one head and computes E tile by tile.
//
// Tasks draw numbers in order, tile by tile over all heads, and wait only for smaller numbers of their own head, whose tasks
// have started. So some thread can always go on, in whatever order the pool starts them.

template <class T>
struct Solve {
    const PreconditionArguments<T>& a;
    Zeros<float> norms;                // [B, H, T]
    Zeros<std::atomic<size_t>> solved; // [B, H]: tiles whose Y is written
    Zeros<float> sent;                 // [B, H, N, D]: Y in float32 if the output has another type
    std::atomic<size_t> next{0};
    size_t tiles;

    explicit Solve(const PreconditionArguments<T>& arguments)
        : a(arguments), norms(a.batch * a.heads * (a.past + a.tokens)), solved(a.batch * a.heads),
          sent(std::is_same_v<T, float> ? 0 : a.batch * a.heads * a.tokens * a.width),
          tiles((a.tokens + kRows - 1) / kRows) {}

    // Unrounded rows of Y, which later rows use: Y is rounded only in the output.
    float* sending() const {
        if constexpr (std::is_same_v<T, float>)
            return a.y;
        else
            return sent.data();
    }
};

// The rows of one task.
struct RowTile {
    const float* keys; // [D][kRows], transposed
    float* scale;      // [kRows]: 1 / (norm · √d)
    float* shift;      // [kRows]: −√d − log L_ii; very low at padding, so that E is 0
    float* sums;       // [kRows][padded width]: V over L_ii, then V − Σ E Y, then Y
    float* weights;    // [kColumns][kRows]: E transposed, rows over L_ii
    float* key_room;   // [kColumns][D]
    float* value_room; // [kColumns][padded width]
    size_t rounded;    // rows in whole panels
    size_t padded;     // the width in whole vectors
};

// weights[c][r] = exp(k_r·k_c / (|k_r| |k_c| √d) − √d) / L_rr
inline void make_weights(const RowTile& tile, const float* keys, const float* norms, size_t columns, size_t width) {
    constexpr int V = LUCID_PANEL_VECTORS;
    for (size_t first = 0; first < tile.rounded; first += kPanel) {
        Vector scale[V], shift[V];
        for (int v = 0; v < V; ++v) {
            scale[v] = load(tile.scale + first + v * kLanes);
            shift[v] = load(tile.shift + first + v * kLanes);
        }
        float* weights = tile.weights + first;
        score_columns<V>(keys, columns, width, tile.keys + first, kRows, [&](size_t column, Vector(&scores)[V]) {
            float norm = norms[column];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v)
                store(weights + column * kRows + v * kLanes, exponential(scores[v] * (scale[v] * norm) + shift[v]));
        });
    }
}

// Subtracts E Y of up to kColumns columns from the rows.
template <class T, class S>
void receive(const RowTile& tile, const T* keys, const S* values, const float* norms, const bool* mask, size_t columns,
             size_t width) {
    if (none_true(mask, columns)) return;
    bool whole = all_true(mask, columns);
    const float* k = as_tile(keys, width, width, columns, mask, whole, tile.key_room);
    const float* y = as_tile(values, width, tile.padded, columns, mask, whole, tile.value_room);
    make_weights(tile, k, norms, columns, width);
    for (size_t row = 0; row < tile.rounded; row += kGroup)
        weigh_rows<true, kGroup>(tile.sums + row * tile.padded, tile.weights + row, kRows, columns, y, tile.padded);
}

inline void wait_for(const std::atomic<size_t>& counter, size_t wanted) {
    for (int spins = 0; counter.load(std::memory_order_acquire) < wanted; ++spins)
        if (spins > 1000) std::this_thread::yield();
}

template <class T>
void solve_tile(Solve<T>& solve, size_t head, size_t number) {
    const PreconditionArguments<T>& a = solve.a;
    size_t d = a.width, first = number * kRows, rows = std::min(kRows, a.tokens - first);
    size_t padded = rounded_up(d, kLanes), context = a.past + a.tokens;
    const bool* mask = a.mask + head / a.heads * context; // of the batch row
    const bool* own = mask + a.past + first;
    const float* norms = solve.norms.data() + head * context;
    const T *keys = a.k + head * a.tokens * d, *values = a.v + head * a.tokens * d;
    T* out = a.y + head * a.tokens * d;
    float* sent = solve.sending() + head * a.tokens * d;

    Scratch scratch(kRows * (2 * d + 2 * padded + kColumns + 2), 7);
    RowTile tile{};
    float* transposed = scratch.take(kRows * d);
    tile.keys = transposed;
    tile.scale = scratch.take(kRows);
    tile.shift = scratch.take(kRows);
    tile.sums = scratch.take(kRows * padded);
    tile.weights = scratch.take(kRows * kColumns);
    tile.key_room = scratch.take(kColumns * d);
    tile.value_room = scratch.take(kColumns * padded);
    tile.rounded = rounded_up(rows, kPanel);
    tile.padded = padded;

    const float root_d = std::sqrt(static_cast<float>(d));
    copy_transposed(transposed, kRows, keys + first * d, d, rows, tile.rounded, own, 1.0f);
    copy_rows(tile.sums, padded, values + first * d, d, rows, own);
    std::fill(tile.sums + rows * padded, tile.sums + tile.rounded * padded, 0.0f);
    for (size_t row = 0; row < tile.rounded; ++row) {
        bool token = row < rows && own[row];
        float norm = token ? norms[a.past + first + row] : 0.0f;
        float log_factor = log_row_factor(norm, root_d, a.epsilon, a.diagonal);
        tile.scale[row] = norm / root_d;
        tile.shift[row] = token ? log_factor - root_d : -1e30f;
        if (log_factor == 0.0f) continue;
        Vector factor = broadcast(std::exp(log_factor));
        for (float* at = tile.sums + row * padded; at < tile.sums + (row + 1) * padded; at += kLanes)
            store(at, load(at) * factor);
    }

    const T *past_keys = a.k_past + head * a.past * d, *past_values = a.y_past + head * a.past * d;
    for (size_t at = 0; at < a.past; at += kColumns)
        receive(tile, past_keys + at * d, past_values + at * d, norms + at, mask + at,
                std::min(kColumns, a.past - at), d);
    for (size_t before = 0; before < number; ++before) {
        wait_for(solve.solved[head], before + 1);
        size_t at = before * kRows;
        receive(tile, keys + at * d, sent + at * d, norms + a.past + at, mask + a.past + at, kRows, d);
    }
    const float* k = as_tile(keys + first * d, d, d, rows, own, all_true(own, rows), tile.key_room);
    make_weights(tile, k, norms + a.past + first, rows, d);
    substitute(tile.sums, padded, {tile.weights, 1, kRows}, rounded_up(rows, kGroup)); // the diagonal block

    for (size_t row = 0; row < rows; ++row) {
        size_t at = (first + row) * d;
        if (!own[row]) {
            std::memcpy(out + at, values + at, d * sizeof(T)); // a padded token's Y is its V, and no other row uses it
            continue;
        }
        std::memcpy(sent + at, tile.sums + row * padded, d * sizeof(float));
        if constexpr (!std::is_same_v<T, float>)
            for (size_t k = 0; k < d; ++k) from_float(out[at + k], sent[at + k]);
    }
    solve.solved[head].store(number + 1, std::memory_order_release);
}

template <class T>
void norm_task(void* data, size_t head) {
    Solve<T>& solve = *static_cast<Solve<T>*>(data);
    const PreconditionArguments<T>& a = solve.a;
    size_t context = a.past + a.tokens;
    float* norms = solve.norms.data() + head * context;
    const bool* mask = a.mask + head / a.heads * context;
    key_norms(norms, a.k_past + head * a.past * a.width, a.width, a.past, mask, a.epsilon);
    key_norms(norms + a.past, a.k + head * a.tokens * a.width, a.width, a.tokens, mask + a.past, a.epsilon);
}

template <class T>
void solve_task(void* data, size_t) {
    Solve<T>& solve = *static_cast<Solve<T>*>(data);
    size_t ticket = solve.next.fetch_add(1), heads = solve.a.batch * solve.a.heads;
    solve_tile(solve, ticket % heads, ticket / heads);
}

template <class T>
void precondition(const PreconditionArguments<T>& arguments, const Pool& pool) {
    Solve<T> solve(arguments);
    size_t heads = arguments.batch * arguments.heads;
    if (heads == 0 || arguments.tokens == 0) return;
    pool.run(norm_task<T>, heads, &solve);
    pool.run(solve_task<T>, heads * solve.tiles, &solve);
}
