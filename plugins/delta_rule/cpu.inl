// The delta rule in chunks: each task processes the chunks of one head in order.
//
// R = (I + X)⁻¹ diag(β) (V − γ ∘ KS) with X = tril(diag(β)(Γ ∘ KKᵀ), −1), by forward substitution as in Precondition;
// O = scale · (γ ∘ QS + (Γ ∘ QKᵀ) R), S ← γ_C S + Kᵀ((γ_C/γ) ∘ R).

constexpr size_t kDeltaRows = 48;   // tokens per chunk, a multiple of kGroup and, on every instruction set, of kLanes
constexpr float kLowestLog = -1e4f; // log α is clamped to it, as in blocked.py: exp gives 0, and sums stay finite
static_assert(kDeltaRows % kLanes == 0 && kDeltaRows % kGroup == 0, "chunks are whole");

// Scratch buffers of one head; rows of values are padded to whole vectors.
struct DeltaChunk {
    float* turned_keys;               // [D][kDeltaRows]: keys, transposed
    float *key_room, *query_room;     // [kDeltaRows][D]: copies, for rows that are not float32 or not whole groups
    float* state;                     // [D][padded]
    float *corrections, *outputs;     // [kDeltaRows][padded]: R, O
    float *gamma, *system, *attended; // [kDeltaRows][kDeltaRows]: Γ, X, scale · (Γ ∘ QKᵀ), valid up to the diagonal
    float* beta;                      // [kDeltaRows]
    float* from_start;                // [kDeltaRows]: γ
    size_t padded;                    // value width, rounded up to whole vectors
};

inline DeltaChunk take_delta_chunk(size_t width, size_t value_width) {
    constexpr size_t square = kDeltaRows * kDeltaRows;
    DeltaChunk chunk{};
    size_t padded = rounded_up(value_width, kLanes);
    Scratch scratch(width * (3 * kDeltaRows + padded) + 2 * kDeltaRows * padded + 3 * square + 2 * kDeltaRows, 11);
    chunk.turned_keys = scratch.take(width * kDeltaRows);
    chunk.key_room = scratch.take(kDeltaRows * width);
    chunk.query_room = scratch.take(kDeltaRows * width);
    chunk.state = scratch.take(width * padded);
    chunk.corrections = scratch.take(kDeltaRows * padded);
    chunk.outputs = scratch.take(kDeltaRows * padded);
    chunk.gamma = scratch.take(square);
    chunk.system = scratch.take(square);
    chunk.attended = scratch.take(square);
    chunk.beta = scratch.take(kDeltaRows);
    chunk.from_start = scratch.take(kDeltaRows);
    chunk.padded = padded;
    std::fill(chunk.attended, chunk.attended + square, 0.0f); // groups of rows also read right of the diagonal
    return chunk;
}

// Computes Γ and γ. log Γ_ij is summed over tokens j+1 … i: subtracting cumulative sums would cancel where α is small.
inline void make_gammas(const DeltaChunk& chunk, const float* log_decay, size_t tokens) {
    alignas(64) float between[kDeltaRows];
    std::fill(between, between + kDeltaRows, -1e30f); // right of the diagonal: the exponential is 0
    std::fill(chunk.from_start, chunk.from_start + kDeltaRows, 0.0f);
    float start = 0.0f;
    for (size_t row = 0; row < tokens; ++row) {
        float* gamma = chunk.gamma + row * kDeltaRows;
        float own = std::max(log_decay[row], kLowestLog);
        chunk.from_start[row] = start += own;
        for (size_t column = 0; column <= row; column += kLanes) {
            Vector sums = load(between + column) + own;
            for (size_t lane = 0; lane < kLanes; ++lane)
                if (column + lane == row) sums[lane] = 0.0f;
            store(between + column, sums);
            store(gamma + column, exponential(sums));
        }
    }
    for (size_t row = 0; row < kDeltaRows; row += kLanes)
        store(chunk.from_start + row, exponential(load(chunk.from_start + row)));
}

// square[row][column] = f · Γ · (rows[row] · keys[column]), for V vectors of columns starting at `column`; f is
// factors[row], or `factor` if `factors` is null.
template <int V>
void gate_scores(const DeltaChunk& chunk, float* square, const float* rows, size_t first, size_t count, size_t column,
                 size_t width, const float* factors, float factor) {
    const float* keys = chunk.turned_keys + column;
    score_columns<V>(rows + first * width, count, width, keys, kDeltaRows, [&](size_t row, Vector(&scores)[V]) {
        size_t at = (first + row) * kDeltaRows + column;
        float times = factors == nullptr ? factor : factors[first + row];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            store(square + at + v * kLanes, scores[v] * (load(chunk.gamma + at + v * kLanes) * times));
    });
}

// The same for all rows and, in whole vectors, all columns up to the diagonal.
inline void gate_scores(const DeltaChunk& chunk, float* square, const float* rows, size_t tokens, size_t width,
                        const float* factors, float factor) {
    constexpr int V = LUCID_PANEL_VECTORS;
    for (size_t first = 0; first < tokens; first += kLanes) {
        size_t count = std::min(kLanes, tokens - first), column = 0;
        for (; column + V * kLanes <= first + kLanes; column += V * kLanes)
            gate_scores<V>(chunk, square, rows, first, count, column, width, factors, factor);
        if (column + 2 * kLanes == first + kLanes)
            gate_scores<2>(chunk, square, rows, first, count, column, width, factors, factor);
        else if (column + kLanes == first + kLanes)
            gate_scores<1>(chunk, square, rows, first, count, column, width, factors, factor);
    }
}
static_assert(LUCID_PANEL_VECTORS == 3, "at most two vectors are left over");

// S ← γ_C S + Kᵀ((γ_C/γ) ∘ R); overwrites R, which is not read again.
inline void advance_state(const DeltaChunk& chunk, const float* keys, size_t tokens, size_t width) {
    const float* to_end = chunk.gamma + (tokens - 1) * kDeltaRows;
    for (size_t token = 0; token < tokens; ++token) {
        float* row = chunk.corrections + token * chunk.padded;
        for (size_t k = 0; k < chunk.padded; k += kLanes) store(row + k, load(row + k) * to_end[token]);
    }
    float decay = chunk.from_start[tokens - 1];
    auto merge = [decay](int, Vector& sum, const Vector& total) { sum = sum * decay + total; };
    size_t row = 0;
    for (; row + kGroup <= width; row += kGroup)
        merge_rows<kGroup>(chunk.state + row * chunk.padded, {keys + row, 1, width}, tokens, chunk.corrections,
                           chunk.padded, merge);
    for (; row < width; ++row)
        merge_rows<1>(chunk.state + row * chunk.padded, {keys + row, 1, width}, tokens, chunk.corrections,
                      chunk.padded, merge);
}

// Returns a chunk's rows as floats, padded with rows of zeros to a multiple of kGroup; copies them to `room` if needed.
template <class T>
const float* whole_groups(const T* rows, size_t width, size_t tokens, float* room) {
    if (tokens % kGroup == 0) return as_tile(rows, width, width, tokens, nullptr, true, room);
    copy_rows(room, width, rows, width, tokens, nullptr);
    std::fill(room + tokens * width, room + rounded_up(tokens, kGroup) * width, 0.0f);
    return room;
}

template <class T>
void delta_chunk(const DeltaRuleArguments<T>& a, const DeltaChunk& chunk, size_t head, size_t first) {
    size_t d = a.key_width, e = a.value_width, at = head * a.tokens + first, padded = chunk.padded;
    size_t tokens = std::min(kDeltaRows, a.tokens - first), rounded = rounded_up(tokens, kGroup);
    for (size_t token = 0; token < rounded; ++token) chunk.beta[token] = token < tokens ? to_float(a.beta[at + token]) : 0;
    make_gammas(chunk, a.log_decay + at, tokens);
    const float* keys = whole_groups(a.key + at * d, d, tokens, chunk.key_room);
    const float* queries = whole_groups(a.query + at * d, d, tokens, chunk.query_room);
    copy_transposed(chunk.turned_keys, kDeltaRows, keys, d, tokens, rounded_up(tokens, kLanes), nullptr, 1.0f);
    gate_scores(chunk, chunk.system, keys, tokens, d, chunk.beta, 0.0f);
    gate_scores(chunk, chunk.attended, queries, tokens, d, nullptr, a.scale);

    copy_rows(chunk.corrections, padded, a.value + at * e, e, tokens, nullptr);
    std::fill(chunk.corrections + tokens * padded, chunk.corrections + rounded * padded, 0.0f);
    for (size_t row = 0; row < rounded; row += kGroup) {
        const float *gamma = chunk.from_start + row, *beta = chunk.beta + row;
        merge_rows<kGroup>(chunk.corrections + row * padded, {keys + row * d, d, 1}, d, chunk.state, padded,
                           [gamma, beta](int r, Vector& value, const Vector& read) {
                               value = beta[r] * (value - gamma[r] * read);
                           });
    }
    substitute(chunk.corrections, padded, {chunk.system, kDeltaRows, 1}, rounded);
    for (size_t row = 0; row < rounded; row += kGroup) {
        float *outputs = chunk.outputs + row * padded, scale = a.scale;
        const float* gamma = chunk.from_start + row;
        merge_rows<kGroup>(outputs, {queries + row * d, d, 1}, d, chunk.state, padded,
                           [gamma, scale](int r, Vector& sum, const Vector& read) { sum = gamma[r] * scale * read; });
        merge_rows<kGroup>(outputs, {chunk.attended + row * kDeltaRows, kDeltaRows, 1}, std::min(row + kGroup, tokens),
                           chunk.corrections, padded,
                           [](int, Vector& sum, const Vector& total) { sum += total; });
    }
    write_rows(a.output + at * e, e, chunk.outputs, padded, tokens);
    advance_state(chunk, keys, tokens, d);
}

template <class N>
LUCID_INLINE N take(const float* from) {
    if constexpr (sizeof(N) == sizeof(float))
        return *from;
    else
        return load(from);
}
LUCID_INLINE void give(float* to, float number) { *to = number; }
LUCID_INLINE void give(float* to, Vector numbers) { store(to, numbers); }

// Processes one token for U columns (or, with N = Vector, vectors of columns) of the state, in two passes over its rows.
template <class N, int U>
void delta_step(const float* key, const float* query, const float* value, float decay, float beta, float key_query,
                const float* state, float* new_state, float* output, size_t width, size_t stride) {
    constexpr size_t lanes = sizeof(N) / sizeof(float);
    N predicted[U]{}, read[U]{}, correction[U];
    for (size_t k = 0; k < width; ++k)
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
            N held = take<N>(state + k * stride + u * lanes);
            predicted[u] += held * key[k];
            read[u] += held * query[k];
        }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
        correction[u] = (take<N>(value + u * lanes) - predicted[u] * decay) * beta;
        give(output + u * lanes, read[u] * decay + correction[u] * key_query);
    }
    for (size_t k = 0; k < width; ++k)
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
            size_t at = k * stride + u * lanes;
            give(new_state + at, take<N>(state + at) * decay + correction[u] * key[k]);
        }
}

// Processes the only new token of one head.
template <class T>
void delta_token(const DeltaRuleArguments<T>& a, size_t head) {
    constexpr int U = LUCID_GROUP_VECTORS;
    size_t d = a.key_width, e = a.value_width;
    Scratch scratch(2 * d + 2 * e, 4);
    float *key = scratch.take(d), *query = scratch.take(d), *value = scratch.take(e), *output = scratch.take(e);
    float key_query = 0.0f;
    for (size_t k = 0; k < d; ++k) {
        key[k] = to_float(a.key[head * d + k]);
        query[k] = to_float(a.query[head * d + k]) * a.scale;
        key_query += key[k] * query[k];
    }
    copy_rows(value, e, a.value + head * e, e, 1, nullptr);
    alignas(64) float log_decay[kLanes] = {std::max(a.log_decay[head], kLowestLog)};
    float decay = exponential(load(log_decay))[0], beta = to_float(a.beta[head]);
    const float* state = a.state + head * d * e;
    float* new_state = a.new_state + head * d * e;
    size_t k = 0;
    for (; k + U * kLanes <= e; k += U * kLanes)
        delta_step<Vector, U>(key, query, value + k, decay, beta, key_query, state + k, new_state + k, output + k, d, e);
    for (; k + kLanes <= e; k += kLanes)
        delta_step<Vector, 1>(key, query, value + k, decay, beta, key_query, state + k, new_state + k, output + k, d, e);
    for (; k < e; ++k)
        delta_step<float, 1>(key, query, value + k, decay, beta, key_query, state + k, new_state + k, output + k, d, e);
    write_rows(a.output + head * e, e, output, e, 1);
}

template <class T>
void delta_task(void* data, size_t head) {
    const DeltaRuleArguments<T>& a = *static_cast<const DeltaRuleArguments<T>*>(data);
    size_t d = a.key_width, e = a.value_width;
    if (a.tokens == 1) return delta_token(a, head);
    DeltaChunk chunk = take_delta_chunk(d, e);
    copy_rows(chunk.state, chunk.padded, a.state + head * d * e, e, d, nullptr);
    for (size_t first = 0; first < a.tokens; first += kDeltaRows) delta_chunk(a, chunk, head, first);
    write_rows(a.new_state + head * d * e, e, chunk.state, chunk.padded, d);
}

template <class T>
void delta_rule(const DeltaRuleArguments<T>& arguments, const Pool& pool) {
    DeltaRuleArguments<T> data = arguments;
    if (arguments.heads > 0) pool.run(delta_task<T>, arguments.heads, &data);
}
