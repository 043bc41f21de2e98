// One new token: softmax over the cache for all query heads of a key/value head, and its own row of L, in one pass.
//
// The new key is one more row beside the G queries; rows lie along the lanes. The context is dealt out in chunks, each
// of which leaves peaks, totals and sums in the workspace; a last step per head joins them.

constexpr size_t kChunk = 1024; // columns of a task: enough work to be worth a hand-over, few enough to share

template <class T>
struct Decode {
    const DecodeArguments<T>& a;
    size_t rows, rounded, padded; // G + 1, in whole vectors; the width in whole vectors
    size_t stride;
    Zeros<size_t> chunks; // [B]: chunks that hold tokens; what comes after the last token is not read
    size_t most;          // the largest of these
    Zeros<float> partial; // [B·H][most][stride]: peak, total, sums [rows][padded]

    explicit Decode(const DecodeArguments<T>& arguments)
        : a(arguments), rows(a.groups + 1), rounded(rounded_up(rows, kLanes)), padded(rounded_up(a.width, kLanes)),
          stride(2 * rounded + rows * padded), chunks(a.batch), most(count_chunks()),
          partial(a.batch * a.heads * most * stride) {}
    size_t count_chunks() const {
        size_t largest = 0;
        for (size_t b = 0; b < a.batch; ++b) {
            const bool* mask = a.mask + b * (a.past + 1);
            size_t used = a.past;
            while (used > 0 && !mask[used - 1]) --used;
            chunks[b] = (used + kChunk - 1) / kChunk;
            largest = std::max(largest, chunks[b]);
        }
        return largest;
    }
    float* part(size_t head, size_t chunk) { return partial.data() + (head * most + chunk) * stride; }
};

struct TokenRows {
    float* queries;    // [D][rounded], transposed: G queries over √d, then the new key over its norm and √d
    float* by_norm;    // [rounded]: 1 in the new key's lane, whose scores are multiplied by the cached key's norm
    float* floor;      // [rounded]: √d in the new key's lane, the least possible float in the others
    float* ceiling;    // [rounded]: √d in the new key's lane, the largest possible float in the others
    float* weights;    // [kColumns][rounded]
    float* norms;      // [kColumns]
    float* key_room;   // [kColumns][D]
    float* value_room; // [kColumns][padded]
};

template <class T>
TokenRows token_rows(const Decode<T>& decode, size_t head, bool token, Scratch& scratch) {
    const DecodeArguments<T>& a = decode.a;
    size_t d = a.width, n = decode.rounded;
    TokenRows rows{};
    rows.queries = scratch.take(d * n);
    rows.by_norm = scratch.take(n);
    rows.floor = scratch.take(n);
    rows.ceiling = scratch.take(n);
    rows.weights = scratch.take(kColumns * n);
    rows.norms = scratch.take(kColumns);
    rows.key_room = scratch.take(kColumns * d);
    rows.value_room = scratch.take(kColumns * decode.padded);
    const float root_d = std::sqrt(static_cast<float>(d));
    copy_transposed(rows.queries, n, a.q + head * a.groups * d, d, a.groups, n, nullptr, 1.0f / root_d);
    const T* key = a.k_new + head * d;
    bool yes = true;
    float norm = 0.0f;
    key_norms(&norm, key, d, 1, &yes, a.epsilon);
    for (size_t k = 0; token && k < d; ++k) rows.queries[k * n + a.groups] = to_float(key[k]) * norm / root_d;
    std::fill(rows.by_norm, rows.by_norm + n, 0.0f);
    std::fill(rows.floor, rows.floor + n, -3e38f);
    std::fill(rows.ceiling, rows.ceiling + n, 3e38f);
    rows.by_norm[a.groups] = 1.0f;
    // A padded new token gets no weights: they are exp(score − peak), with a peak beyond reach.
    rows.floor[a.groups] = rows.ceiling[a.groups] = token ? root_d : 1e30f;
    return rows;
}

// Asks for a row of the cache ahead of its use: the processor's own prefetching stops at every page.
template <class T>
LUCID_INLINE void prefetch(const T* row, size_t width) {
    const char* bytes = reinterpret_cast<const char*>(row);
    for (size_t at = 0; at < width * sizeof(T); at += 64) __builtin_prefetch(bytes + at);
}

// Adds up to kColumns columns to a chunk's peaks, totals and sums; `next` are the keys of the columns after them.
template <class T>
void decode_columns(const Decode<T>& decode, const TokenRows& rows, const T* keys, const T* values, const bool* mask,
                    size_t columns, const T* next, float* part) {
    if (none_true(mask, columns)) return;
    size_t d = decode.a.width, n = decode.rounded, padded = decode.padded;
    bool whole = all_true(mask, columns);
    const float* k = as_tile(keys, d, d, columns, mask, whole, rows.key_room);
    const float* y = as_tile(values, d, padded, columns, mask, whole, rows.value_room);
    key_norms(rows.norms, k, d, columns, mask, decode.a.epsilon);
    float *peaks = part, *totals = part + n, *sums = part + 2 * n;
    for (size_t first = 0; first < n; first += kLanes) {
        Vector by_norm = load(rows.by_norm + first), before = load(peaks + first), peak = before;
        float* weights = rows.weights + first;
        score_columns<1>(k, columns, d, rows.queries + first, n, [&](size_t column, Vector(&scores)[1]) {
            if (first == 0) prefetch(values + column * d, d); // meets its weights soon
            Vector factor = by_norm * rows.norms[column] + (1.0f - by_norm);
            Vector score = mask[column] ? scores[0] * factor : broadcast(kHidden);
            store(weights + column * n, score);
            peak = larger(peak, score);
        });
        Vector floor = load(rows.floor + first), ceiling = load(rows.ceiling + first);
        peak = larger(peak, floor);
        peak = peak < ceiling ? peak : ceiling;
        Vector total{};
        for (size_t column = 0; column < columns; ++column) {
            if (first == 0 && next != nullptr) prefetch(next + column * d, d);
            Vector weight = exponential(load(weights + column * n) - peak);
            store(weights + column * n, weight);
            total += weight;
        }
        Vector shrink = exponential(before - peak);
        store(peaks + first, peak);
        store(totals + first, load(totals + first) * shrink + total);
        float factors[kLanes];
        store(factors, shrink);
        for (size_t row = first; row < std::min(first + kLanes, decode.rows); ++row)
            for (size_t at = 0; at < padded && factors[row - first] != 1.0f; at += kLanes)
                store(sums + row * padded + at, load(sums + row * padded + at) * factors[row - first]);
    }
    size_t row = 0;
    for (; row + kGroup <= decode.rows; row += kGroup)
        weigh_rows<false, kGroup>(sums + row * padded, rows.weights + row, n, columns, y, padded);
    float *left_sums = sums + row * padded, *left_weights = rows.weights + row;
    switch (decode.rows - row) {
    case 1: weigh_rows<false, 1>(left_sums, left_weights, n, columns, y, padded); break;
    case 2: weigh_rows<false, 2>(left_sums, left_weights, n, columns, y, padded); break;
    case 3: weigh_rows<false, 3>(left_sums, left_weights, n, columns, y, padded); break;
    case 4: weigh_rows<false, 4>(left_sums, left_weights, n, columns, y, padded); break;
    case 5: weigh_rows<false, 5>(left_sums, left_weights, n, columns, y, padded); break;
    default: break;
    }
}

template <class T>
void chunk_task(void* data, size_t index) {
    Decode<T>& decode = *static_cast<Decode<T>*>(data);
    const DecodeArguments<T>& a = decode.a;
    size_t head = index / decode.most, chunk = index % decode.most, b = head / a.heads, d = a.width;
    if (chunk >= decode.chunks[b]) return;
    const bool* mask = a.mask + b * (a.past + 1);
    Scratch scratch(decode.rounded * (d + 3 + kColumns) + kColumns * (1 + d + decode.padded), 8);
    TokenRows rows = token_rows(decode, head, mask[a.past], scratch);
    float* part = decode.part(head, chunk);
    std::fill(part, part + decode.rounded, kNoPeak);
    std::fill(part + decode.rounded, part + decode.stride, 0.0f);
    size_t end = std::min((chunk + 1) * kChunk, a.past);
    for (size_t at = chunk * kChunk; at < end; at += kColumns) {
        const T* keys = a.k + (head * a.past + at) * d;
        const T* next = at + 2 * kColumns <= a.past ? keys + kColumns * d : nullptr;
        decode_columns(decode, rows, keys, a.y + (head * a.past + at) * d, mask + at, std::min(kColumns, end - at),
                       next, part);
    }
}

// Joins a head's chunks: y = v − Σ of the new key's row, then the softmax over the cache and the new token.
template <class T>
void join_task(void* data, size_t head) {
    Decode<T>& decode = *static_cast<Decode<T>*>(data);
    const DecodeArguments<T>& a = decode.a;
    size_t d = a.width, n = decode.rounded, padded = decode.padded, chunks = decode.chunks[head / a.heads];
    const T *key = a.k_new + head * d, *value = a.v_new + head * d;
    Scratch scratch(2 * padded, 2);
    float *y = scratch.take(padded), *sums = scratch.take(padded);
    for (size_t k = 0; k < d; ++k) y[k] = to_float(value[k]);
    for (size_t chunk = 0; chunk < chunks; ++chunk) {
        const float* received = decode.part(head, chunk) + 2 * n + a.groups * padded;
        for (size_t k = 0; k < d; ++k) y[k] -= received[k];
    }
    for (size_t k = 0; k < d; ++k) from_float(a.y_new[head * d + k], y[k]);
    for (size_t row = 0; row < a.groups; ++row) {
        const T* query = a.q + (head * a.groups + row) * d;
        float peak = 0.0f, total = 1.0f;
        for (size_t k = 0; k < d; ++k) peak += to_float(query[k]) * to_float(key[k]);
        peak /= std::sqrt(static_cast<float>(d));
        std::copy(y, y + d, sums);
        for (size_t chunk = 0; chunk < chunks; ++chunk) {
            const float* part = decode.part(head, chunk);
            float joint = std::max(peak, part[row]), old = std::exp(peak - joint), fresh = std::exp(part[row] - joint);
            total = total * old + part[n + row] * fresh;
            for (size_t k = 0; k < d; ++k) sums[k] = sums[k] * old + part[2 * n + row * padded + k] * fresh;
            peak = joint;
        }
        for (size_t k = 0; k < d; ++k) from_float(a.o[(head * a.groups + row) * d + k], sums[k] / total);
    }
}

template <class T>
void decode(const DecodeArguments<T>& arguments, const Pool& pool) {
    Decode<T> decode(arguments);
    size_t heads = arguments.batch * arguments.heads;
    if (heads == 0) return;
    if (decode.most != 0) pool.run(chunk_task<T>, heads * decode.most, &decode);
    pool.run(join_task<T>, heads, &decode);
}
