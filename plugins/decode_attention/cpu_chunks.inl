// The first step of attention of a few new tokens: one pass over the cache, for all query heads of a key/value head.
// To solve for the new tokens' Y, the N new keys are extra rows after the N·G queries. T is the model's type, S the
// cache's: float, Half or int8_t. Cached rows are converted in registers, except keys that are transposed first and
// rows narrower than a vector. The scale of an int8 row multiplies its scores (K) or weights (Y), not the row. A task
// reads a chunk of the cache and writes each row's peak (largest score), sum of weights and sum of Y to the workspace.

constexpr size_t kChunk = 1024; // columns (cached rows) per task: enough work for it, few enough to occupy all threads
constexpr size_t kTurnedRows = 32; // from this many rows on, keys at least a vector wide are transposed first
static_assert(kColumns % (LUCID_PANEL_VECTORS * kLanes) == 0, "columns of a tile are whole panels");

template <class T, class S>
struct Decode {
    const DecodeArguments<T, S>& a;
    Cut cut;
    size_t queries;       // N·G: row t·G + g is query head g of token t; when solving, the N new keys follow
    size_t rows;          // N·(G + 1), or N·G without solving
    size_t stride;        // floats that a chunk writes
    Zeros<size_t> chunks; // [B]: chunks up to the last token; later ones are padding, only copied to a grown cache
    size_t most;          // the largest of `chunks`
    size_t dealt;         // tasks per head: all chunks if the cache is copied, else `most`
    Zeros<float> partial; // [B·H][most][stride]: peak [rows], total [rows], sums [rows][padded]

    explicit Decode(const DecodeArguments<T, S>& arguments)
        : a(arguments), cut(a.width), queries(a.tokens * a.groups), rows(queries + a.solved()),
          stride(rows * (2 + cut.padded)), chunks(a.batch), most(count_chunks()),
          dealt(a.k_present == nullptr ? most : (a.past + kChunk - 1) / kChunk), partial(a.batch * a.heads * most * stride) {}
    size_t count_chunks() const {
        size_t largest = 0;
        for (size_t b = 0; b < a.batch; ++b) {
            const bool* mask = a.mask + b * (a.past + a.tokens);
            size_t used = a.past;
            while (used > 0 && !mask[used - 1]) --used;
            chunks[b] = (used + kChunk - 1) / kChunk;
            largest = std::max(largest, chunks[b]);
        }
        return largest;
    }
    size_t turned_floats() const { return rows < kTurnedRows || a.width < kLanes ? 0 : a.width * kColumns; }
    float* part(size_t head, size_t chunk) const { return partial.data() + (head * most + chunk) * stride; }
    const float* sums(size_t head, size_t chunk, size_t row) const {
        return part(head, chunk) + 2 * rows + row * cut.padded;
    }
};

// The query rows of a task and its scratch memory.
struct Fresh {
    float* queries; // [rows][padded] or, if `turned`, [rows][D]: queries / √d, then, when solving, k̂_new / √d
    float* turned;  // [D][kColumns]: a tile's keys, transposed; null if they are not transposed
    float* fresh;   // [kLanes]: 0 for elements of the last vector that overlap the one before it, else 1
    float* weights; // [rows][kColumns]: scores, then weights
    float* totals;  // [rows][kLanes]: a chunk's sums of weights, lane by lane
    float* norms;   // [kColumns]: Σ K² of the cached keys, then their inverse norms, factors of the new keys' scores
    float* peaks;   // [N]: peaks of the new keys' rows, √d + log L_ii
    float* zeros;   // a row of zeros, read in place of padding
    float* rooms;   // [2][kColumns][kLanes]: rows narrower than a vector, as floats
    size_t own;     // the first row of a new key
    size_t rows;
};

template <class T, class S>
Fresh make_fresh(const Decode<T, S>& decode, size_t head, const bool* tokens, Scratch& scratch) {
    const DecodeArguments<T, S>& a = decode.a;
    const Cut& cut = decode.cut;
    size_t d = a.width;
    Fresh made{};
    made.own = decode.queries;
    made.rows = decode.rows;
    made.queries = scratch.take(decode.rows * cut.padded);
    made.fresh = scratch.take(kLanes);
    made.weights = scratch.take(decode.rows * kColumns);
    made.totals = scratch.take(decode.rows * kLanes);
    made.norms = scratch.take(kColumns);
    made.peaks = scratch.take(a.tokens);
    made.zeros = scratch.take(cut.padded);
    made.rooms = scratch.take(2 * kColumns * kLanes);
    made.turned = decode.turned_floats() == 0 ? nullptr : scratch.take(decode.turned_floats());
    std::fill(made.queries, made.queries + decode.rows * cut.padded, 0.0f);
    for (size_t lane = 0; lane < kLanes; ++lane) made.fresh[lane] = lane < cut.padded - d ? 0.0f : 1.0f;
    std::fill(made.zeros, made.zeros + cut.padded, 0.0f);
    std::fill(made.totals, made.totals + decode.rows * kLanes, 0.0f);
    const float root_d = std::sqrt(static_cast<float>(d));
    const size_t step = made.turned == nullptr ? cut.padded : d;
    auto place = [&](size_t k) { return made.turned == nullptr ? cut.place(k) : k; };
    for (size_t t = 0; t < a.tokens; ++t)
        for (size_t g = 0; g < a.groups; ++g)
            for (size_t k = 0; k < d; ++k)
                made.queries[(t * a.groups + g) * step + place(k)] = to_float(a.query(head, g, t)[k]) / root_d;
    for (size_t t = 0; t < a.solved(); ++t) {
        const T* key = a.k_new + (head * a.tokens + t) * d;
        bool yes = true;
        float norm = 0.0f;
        key_norms(&norm, key, d, 1, &yes, a.epsilon);
        for (size_t k = 0; k < d && tokens[t]; ++k)
            made.queries[(made.own + t) * step + place(k)] = to_float(key[k]) * norm / root_d;
        // A padded new token gets weights of 0: they are exp(score − peak), and its peak is very large.
        made.peaks[t] = tokens[t] ? root_d - log_row_factor(norm, root_d, a.epsilon, a.diagonal) : 1e30f;
    }
    return made;
}

// A tile of `columns` neighbouring rows of the cache, padded to whole vectors with empty columns.
template <class S>
struct StoredTile {
    const S *keys[kColumns], *values[kColumns];
    float key_scale[kColumns], value_scale[kColumns]; // for int8: the scales, 0 at padding
    float hide[kColumns];                             // added to scores: 0, or kHidden at padding
    size_t columns, whole;                            // `whole`: rounded up to vectors
    bool full;                                        // whether all `whole` columns are tokens
    size_t ahead; // elements from a row to its successor in the next tile, which is prefetched; 0: there is none
};

template <class T, class S>
void find_rows(StoredTile<S>& tile, const DecodeArguments<T, S>& a, size_t first, size_t columns, const bool* mask,
               const float* zeros) {
    const S* empty = reinterpret_cast<const S*>(zeros);
    tile.columns = columns;
    tile.whole = rounded_up(columns, kLanes);
    tile.full = columns == tile.whole && all_true(mask, columns);
    for (size_t c = 0; c < tile.whole; ++c) {
        bool token = c < columns && mask[c];
        tile.keys[c] = token ? a.k + (first + c) * a.width : empty;
        tile.values[c] = token ? a.y + (first + c) * a.width : empty;
        tile.hide[c] = token ? 0.0f : kHidden;
        if constexpr (std::is_same_v<S, int8_t>) {
            tile.key_scale[c] = token ? a.k_scale[first + c] : 0.0f;
            tile.value_scale[c] = token ? a.y_scale[first + c] : 0.0f;
        }
    }
}

// Copies rows narrower than a vector to the positions of Cut::place.
template <class S>
void widen_rows(StoredTile<float>& wide, const StoredTile<S>& tile, size_t width, float* rooms) {
    std::fill(rooms, rooms + 2 * kColumns * kLanes, 0.0f);
    for (size_t c = 0; c < tile.whole; ++c) {
        float *key = rooms + c * kLanes, *value = key + kColumns * kLanes;
        for (size_t k = 0; k < width; ++k) {
            key[kLanes - width + k] = to_float(tile.keys[c][k]);
            value[kLanes - width + k] = to_float(tile.values[c][k]);
        }
        wide.keys[c] = key;
        wide.values[c] = value;
    }
    std::copy(tile.key_scale, tile.key_scale + kColumns, wide.key_scale);
    std::copy(tile.value_scale, tile.value_scale + kColumns, wide.value_scale);
    std::copy(tile.hide, tile.hide + kColumns, wide.hide);
    wide.columns = tile.columns;
    wide.whole = tile.whole;
    wide.full = tile.full;
    wide.ahead = 0;
}

// Prefetches a row of the next tile into the L2 cache: the hardware prefetcher stops at page boundaries, and
// prefetching shortly before the use is too late.
template <class S>
LUCID_INLINE void prefetch(const S* row, size_t width) {
    const char* bytes = reinterpret_cast<const char*>(row);
    for (size_t at = 0; at < width * sizeof(S); at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

// Turns sums of squares into the factors of the new keys' scores, 1 / sqrt(mean(K²) + eps). An int8 key is s·n; scores
// are computed from the integers n, and s / sqrt(s² mean(n²) + eps) = 1 / sqrt(mean(n²) + eps / s²).
template <bool Scaled, class S>
void norms_of(float* norms, const StoredTile<S>& tile, size_t width, float epsilon) {
    for (size_t c = 0; c < tile.whole; c += kLanes) {
        Vector mean = load(norms + c) / static_cast<float>(width), added = broadcast(epsilon);
        if constexpr (Scaled) {
            Vector scale = load(tile.key_scale + c);
            Vector ratio = epsilon / (scale * scale);
            added = scale > 0.0f ? ratio : broadcast(1.0f); // a row of zeros: its scores are 0 for any norm
        }
        Vector norm = 1.0f / root(mean + added);
        store(norms + c, load(tile.hide + c) < 0.0f ? Vector{} : norm);
    }
}

// Spreads prefetches over the arithmetic, a few rows at a time: issued all at once, they would stall. After `calls`
// calls, what(column) has been called for every column.
class Share {
public:
    Share(size_t columns, size_t calls) : columns_(columns), calls_(std::max<size_t>(calls, 1)) {}
    template <class What>
    LUCID_INLINE void next(What what) {
        size_t end = std::min(columns_, columns_ * ++made_ / calls_);
        for (; at_ < end; ++at_) what(at_);
    }

private:
    size_t columns_, calls_, made_ = 0, at_ = 0;
};

// Turns a row's scores into weights and returns their sums per lane; then multiplies weights of int8 rows by Y's scale.
// The peak of a query rises to its largest score; the peak of a new key is fixed.
template <bool Scaled, bool Own, bool Hidden, class S>
LUCID_INLINE Vector soften_row(float* weights, const StoredTile<S>& tile, const float* norms, float& peak) {
    auto score = [&](size_t c) {
        Vector value = load(weights + c);
        if constexpr (Own)
            value *= load(norms + c);
        else if constexpr (Scaled)
            value *= load(tile.key_scale + c);
        if constexpr (Hidden) value += load(tile.hide + c);
        return value;
    };
    if constexpr (!Own) {
        Vector before = broadcast(peak), highest = before;
        for (size_t c = 0; c < tile.whole; c += kLanes) {
            Vector value = score(c);
            highest = larger(highest, value);
            // Store the rounded score: computed again in one FMA with the subtraction, it could exceed the peak.
            if constexpr (Scaled || Hidden) store(weights + c, value);
        }
        if (any_larger(highest, before)) peak = largest(highest); // rare after the first tiles
    }
    Vector total{};
    for (size_t c = 0; c < tile.whole; c += kLanes) {
        Vector weight = exponential((Own ? score(c) : load(weights + c)) - peak);
        total += weight;
        if constexpr (Scaled) weight *= load(tile.value_scale + c);
        store(weights + c, weight);
    }
    return total;
}

// Does so for all rows of a tile; also rescales the chunk's totals and sums to the new peaks, and adds to the totals.
template <bool Scaled, bool Hidden, class S>
void soften_rows(const Fresh& token, const StoredTile<S>& tile, const Cut& cut, float* part) {
    float *peaks = part, *sums = part + 2 * token.rows;
    for (size_t row = 0; row < token.rows; ++row) {
        float *weights = token.weights + row * kColumns, *totals = token.totals + row * kLanes, before = peaks[row];
        Vector total = row < token.own ? soften_row<Scaled, false, Hidden>(weights, tile, token.norms, peaks[row])
                                       : soften_row<Scaled, true, Hidden>(weights, tile, token.norms, peaks[row]);
        float shrink = peaks[row] == before ? 1.0f : std::exp(before - peaks[row]);
        store(totals, load(totals) * shrink + total);
        float* scaled = sums + row * cut.padded;
        for (size_t at = 0; at < cut.padded && shrink != 1.0f; at += kLanes) store(scaled + at, load(scaled + at) * shrink);
    }
}

template <bool Scaled, class S>
void soften_token(const Fresh& token, const StoredTile<S>& tile, const Cut& cut, float* part) {
    if (tile.full)
        soften_rows<Scaled, false>(token, tile, cut, part);
    else
        soften_rows<Scaled, true>(token, tile, cut, part);
}

// Computes all rows' scores for a tile's columns and, with new keys, Σ K² of each column; lanes hold elements of K.
template <class S>
void score_rows(const Fresh& token, const StoredTile<S>& tile, const Cut& cut) {
    size_t groups = (token.rows + kGroup - 1) / kGroup;
    in_groups(token.rows, [&](auto count, size_t row) {
        constexpr int R = decltype(count)::value;
        const float* rows = token.queries + row * cut.padded;
        for (size_t c = 0; c < tile.whole; c += kLanes) {
            float* scores = token.weights + row * kColumns + c;
            const S* const* keys = tile.keys + c;
            Ahead next{tile.ahead, 0, c / kLanes % groups == row / kGroup ? kLanes : 0}; // each column once
            if (row == 0 && token.own < token.rows) {
                score_stored<R, true>(scores, kColumns, token.norms + c, keys, cut, rows, token.fresh, next);
            } else {
                score_stored<R, false>(scores, kColumns, nullptr, keys, cut, rows, token.fresh, next);
            }
        }
    });
}

// Transposes kLanes columns, turned[k][c] = keys[c][k], and returns Σ_k keys[c][k]².
template <class S>
LUCID_INLINE Vector turn_columns(float* turned, const S* const* keys, size_t width) {
    constexpr size_t kSums = 4; // independent sums hide the latency of additions
    size_t whole = width / kLanes * kLanes;
    Vector squares[kSums]{};
    for (size_t k = 0; k < whole; k += kLanes) {
        Vector block[kLanes];
#pragma GCC unroll 16
        for (size_t c = 0; c < kLanes; ++c) block[c] = widen(keys[c] + k);
        transpose(block);
#pragma GCC unroll 16
        for (size_t row = 0; row < kLanes; ++row) {
            store(turned + (k + row) * kColumns, block[row]);
            squares[row % kSums] += block[row] * block[row];
        }
    }
    for (size_t k = whole; k < width; ++k) {
        for (size_t c = 0; c < kLanes; ++c) turned[k * kColumns + c] = to_float(keys[c][k]);
        Vector key = load(turned + k * kColumns);
        squares[k % kSums] += key * key;
    }
    return (squares[0] + squares[1]) + (squares[2] + squares[3]);
}

// As score_rows, but lanes hold columns: with many rows it pays to transpose the keys once and avoid sums across lanes.
template <class S>
void score_turned(const Fresh& token, const StoredTile<S>& tile, size_t width) {
    constexpr int V = LUCID_PANEL_VECTORS;
    for (size_t c = 0; c < tile.whole; c += kLanes)
        store(token.norms + c, turn_columns(token.turned + c, tile.keys + c, width));
    size_t panels = tile.whole / (V * kLanes) + tile.whole % (V * kLanes) / kLanes;
    Share keys(tile.whole, panels * token.rows);
    auto columns = [&](auto vectors, size_t c) {
        constexpr int U = decltype(vectors)::value;
        score_columns<U>(token.queries, token.rows, width, token.turned + c, kColumns,
                         [&](size_t row, const Vector(&scores)[U]) {
                             keys.next([&](size_t column) { prefetch(tile.keys[column] + tile.ahead, width); });
                             for (int u = 0; u < U; ++u) store(token.weights + row * kColumns + c + u * kLanes, scores[u]);
                         });
    };
    size_t c = 0;
    for (; c + V * kLanes <= tile.whole; c += V * kLanes) columns(std::integral_constant<int, V>(), c);
    for (; c < tile.whole; c += kLanes) columns(std::integral_constant<int, 1>(), c);
}

// Adds a tile's columns to a chunk's peaks, totals and sums.
template <bool Scaled, class S>
void decode_tile(const Fresh& token, const StoredTile<S>& tile, const Cut& cut, float epsilon, float* part) {
    if (token.turned == nullptr)
        score_rows(token, tile, cut);
    else
        score_turned(token, tile, cut.width);
    if (token.own < token.rows) norms_of<Scaled>(token.norms, tile, cut.width, epsilon);
    soften_token<Scaled>(token, tile, cut, part);
    float* sums = part + 2 * token.rows;
    in_groups(token.rows, [&](auto count, size_t row) {
        constexpr int R = decltype(count)::value;
        const float* weights = token.weights + row * kColumns;
        Ahead next{tile.ahead, row * tile.columns / token.rows, (row + R) * tile.columns / token.rows};
        weigh_stored_rows<R>(sums + row * cut.padded, weights, kColumns, tile.columns, tile.values, cut, next);
    });
}

// Copies cached rows to the grown cache, if there is one: just after use, while the processor's caches still hold them.
template <class T, class S>
void copy_rows(const DecodeArguments<T, S>& a, size_t head, size_t first, size_t rows) {
    if (a.k_present == nullptr) return;
    size_t from = (head * a.past + first) * a.width, to = (head * (a.past + a.tokens) + first) * a.width;
    copy_past_caches(a.k + from, a.k_present + to, rows * a.width * sizeof(S));
    copy_past_caches(a.y + from, a.y_present + to, rows * a.width * sizeof(S));
}

template <class T, class S>
void chunk_task(void* data, size_t index) {
    Decode<T, S>& decode = *static_cast<Decode<T, S>*>(data);
    const DecodeArguments<T, S>& a = decode.a;
    const Cut& cut = decode.cut;
    size_t head = index / decode.dealt, chunk = index % decode.dealt, b = head / a.heads, d = a.width;
    size_t end = std::min((chunk + 1) * kChunk, a.past);
    if (chunk >= decode.chunks[b]) return copy_rows(a, head, chunk * kChunk, end - chunk * kChunk);
    const bool* mask = a.mask + b * (a.past + a.tokens);
    size_t columns_room = kColumns * (1 + 2 * kLanes);
    size_t floats = decode.rows * (cut.padded + kColumns + kLanes) + kLanes + cut.padded + a.tokens + columns_room;
    Scratch scratch(floats + decode.turned_floats(), 9);
    Fresh token = make_fresh(decode, head, mask + a.past, scratch);
    float* part = decode.part(head, chunk);
    std::fill(part, part + token.own, kNoPeak);
    std::copy(token.peaks, token.peaks + a.solved(), part + token.own);
    std::fill(part + decode.rows, part + decode.stride, 0.0f);
    constexpr bool kScaled = std::is_same_v<S, int8_t>;
    StoredTile<S> tile{};
    for (size_t at = chunk * kChunk; at < end; at += kColumns) {
        size_t columns = std::min(kColumns, end - at), first = head * a.past + at;
        if (none_true(mask + at, columns)) {
            copy_rows(a, head, at, columns);
            continue;
        }
        find_rows(tile, a, first, columns, mask + at, token.zeros);
        tile.ahead = tile.full && at + kColumns < end ? kColumns * d : 0;
        if (d >= kLanes) {
            decode_tile<kScaled>(token, tile, cut, a.epsilon, part);
        } else {
            StoredTile<float> wide;
            widen_rows(wide, tile, d, token.rooms);
            decode_tile<kScaled>(token, wide, cut, a.epsilon, part);
        }
        copy_rows(a, head, at, columns);
    }
    for (size_t row = 0; row < decode.rows; ++row) part[decode.rows + row] = sum(load(token.totals + row * kLanes));
}
