// Y_i = L_ii⁻¹ (V_i − Σ_{j<i} E_ij Y_j): each task solves a tile of rows of one head and computes E tile by tile.
//
// Each task takes a ticket from a counter: first come the first tiles of all heads, then the second tiles, etc. A task
// waits only for smaller tickets, whose tasks have started, so no order in which the pool starts them can deadlock.
//
// Tiles begin at multiples of kRows from the start of the context, so that a float32 Y has the same bits however a
// prompt is split into calls. The first tile may begin with past rows; there E is 0 and V is the cached Y, so Y = V.
static_assert(kRows == kColumns, "tiles of columns are those in which they were solved");

template <class T>
struct Solve {
    const PreconditionArguments<T>& a;
    Zeros<float> norms;                // [B, H, P + N]: 1 / sqrt(mean(K²) + eps), 0 at padding
    Zeros<std::atomic<size_t>> solved; // [B, H]: tiles whose Y is written
    Zeros<float> sent;                 // [B, H, N, D]: Y in float32 if the output has another type
    std::atomic<size_t> next{0};
    size_t lead, tiles; // past rows in the first tile; tiles per head

    explicit Solve(const PreconditionArguments<T>& arguments)
        : a(arguments), norms(a.batch * a.heads * (a.past + a.tokens)), solved(a.batch * a.heads),
          sent(std::is_same_v<T, float> ? 0 : a.batch * a.heads * a.tokens * a.width),
          lead(a.past % kRows), tiles((lead + a.tokens + kRows - 1) / kRows) {}

    // Rows of Y in float32, which later rows use: only the output is rounded.
    float* sending() const {
        if constexpr (std::is_same_v<T, float>)
            return a.y;
        else
            return sent.data();
    }
};

// The scratch memory and sizes of one task's tile of rows.
struct RowTile {
    const float* keys; // [D][kRows], transposed
    float* scale;      // [kRows]: inverse norms / √d
    float* shift;      // [kRows]: −√d − log L_ii; very low at padding and in past rows, so that E is 0
    float* sums;       // [kRows][padded width]: V / L_ii, then (V − Σ E Y) / L_ii, then Y
    float* weights;    // [kColumns][kRows]: E / L_ii, transposed
    float* key_room;   // [kColumns][D]
    float* value_room; // [kColumns][padded width]
    size_t group;      // where the first group with a new row begins
    size_t panel;      // where the panel that holds this row begins
    size_t rounded;    // the rows, rounded up to whole panels
    size_t padded;     // the width, rounded up to whole vectors
};

// weights[c][r] = exp(k_r·k_c · norms[r] · norms[c] / √d − √d) / L_rr
inline void make_weights(const RowTile& tile, const float* keys, const float* norms, size_t columns, size_t width) {
    constexpr int V = LUCID_PANEL_VECTORS;
    for (size_t first = tile.panel; first < tile.rounded; first += kPanel) {
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

// Copies `count` rows to a tile as copy_rows does: the first `known` from `past`, the others from `added`.
template <class T, class S>
void join(float* tile, size_t padded, const T* past, size_t known, const S* added, size_t width, size_t count,
          const bool* mask) {
    copy_rows(tile, padded, past, width, known, mask);
    copy_rows(tile + known * padded, padded, added, width, count - known, mask + known);
}

inline void wait_for(const std::atomic<size_t>& counter, size_t wanted) {
    for (int spins = 0; counter.load(std::memory_order_acquire) < wanted; ++spins)
        if (spins > 1000) std::this_thread::yield();
}

template <class T>
void solve_tile(Solve<T>& solve, size_t head, size_t number) {
    const PreconditionArguments<T>& a = solve.a;
    size_t d = a.width, padded = rounded_up(d, kLanes), context = a.past + a.tokens;
    size_t known = number == 0 ? solve.lead : 0, start = a.past - solve.lead + number * kRows; // start: in the context
    size_t first = start + known - a.past, rows = std::min(kRows, context - start);
    const bool* mask = a.mask + head / a.heads * context; // of the batch row
    const bool* own = mask + start;
    const float* norms = solve.norms.data() + head * context;
    const T *keys = a.k + head * a.tokens * d, *values = a.v + head * a.tokens * d;
    const T *past_keys = a.k_past + head * a.past * d, *past_values = a.y_past + head * a.past * d;
    T* out = a.y + head * a.tokens * d;
    float* sent = solve.sending() + head * a.tokens * d;

    Scratch scratch(kRows * (3 * d + 2 * padded + kColumns + 2), 8);
    RowTile tile{};
    float *transposed = scratch.take(kRows * d), *own_keys = scratch.take(kRows * d);
    tile.keys = transposed;
    tile.scale = scratch.take(kRows);
    tile.shift = scratch.take(kRows);
    tile.sums = scratch.take(kRows * padded);
    tile.weights = scratch.take(kRows * kColumns);
    tile.key_room = scratch.take(kColumns * d);
    tile.value_room = scratch.take(kColumns * padded);
    tile.group = known / kGroup * kGroup;
    tile.panel = tile.group / kPanel * kPanel;
    tile.rounded = rounded_up(rows, kPanel);
    tile.padded = padded;

    const float root_d = std::sqrt(static_cast<float>(d));
    join(own_keys, d, past_keys + (a.past - known) * d, known, keys + first * d, d, rows, own);
    copy_transposed(transposed, kRows, own_keys, d, rows, tile.rounded, nullptr, 1.0f);
    join(tile.sums, padded, past_values + (a.past - known) * d, known, values + first * d, d, rows, own);
    std::fill(tile.sums + rows * padded, tile.sums + tile.rounded * padded, 0.0f);
    for (size_t row = 0; row < tile.rounded; ++row) {
        bool token = row >= known && row < rows && own[row];
        float norm = token ? norms[start + row] : 0.0f;
        float log_factor = log_row_factor(norm, root_d, a.epsilon, a.diagonal);
        tile.scale[row] = norm / root_d;
        tile.shift[row] = token ? log_factor - root_d : -1e30f;
        if (log_factor == 0.0f) continue;
        Vector factor = broadcast(std::exp(log_factor));
        for (float* at = tile.sums + row * padded; at < tile.sums + (row + 1) * padded; at += kLanes)
            store(at, load(at) * factor);
    }

    for (size_t at = 0; at < start; at += kColumns) {
        size_t old = at < a.past ? std::min(kColumns, a.past - at) : 0, fresh = std::max(at + old, a.past) - a.past;
        if (old < kColumns) wait_for(solve.solved[head], (at + solve.lead - a.past) / kRows + 1);
        if (none_true(mask + at, kColumns)) continue;
        join(tile.key_room, d, past_keys + at * d, old, keys + fresh * d, d, kColumns, mask + at);
        join(tile.value_room, padded, past_values + at * d, old, sent + fresh * d, d, kColumns, mask + at);
        make_weights(tile, tile.key_room, norms + at, kColumns, d);
        for (size_t row = tile.group; row < tile.rounded; row += kGroup)
            weigh_rows<true, kGroup>(tile.sums + row * padded, tile.weights + row, kRows, kColumns, tile.value_room, padded);
    }
    make_weights(tile, own_keys, norms + start, rows, d);
    substitute(tile.sums, padded, {tile.weights, 1, kRows}, rounded_up(rows, kGroup), tile.group); // the diagonal block

    for (size_t row = known; row < rows; ++row) {
        size_t at = (start + row - a.past) * d;
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
