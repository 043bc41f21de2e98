// A few new tokens against the cache: all query heads of a key/value head, and their own rows of L, in one pass.
//
// The N new keys are rows beside the N·G queries. T is the model's type, S that of the cache: rows of float, Half or
// int8_t are converted in registers as they are read. The scale of an int8 row of K multiplies its scores, that of a row
// of Y its weights, so that no row is ever written out as floats. The context is dealt out in chunks, each of which
// leaves peaks, totals and sums in the workspace.

constexpr size_t kChunk = 1024; // columns of a task: enough work to be worth a hand-over, few enough to share
constexpr size_t kTurnedRows = 32; // rows from which on a tile's keys are turned first
static_assert(kColumns % (LUCID_PANEL_VECTORS * kLanes) == 0, "columns of a tile are whole panels");

template <class T, class S>
struct Decode {
    const DecodeArguments<T, S>& a;
    Cut cut;
    size_t queries;       // N·G: row t·G + g is query head g of token t; then come the N new keys
    size_t rows;          // N·(G + 1)
    size_t stride;        // floats that a chunk leaves
    Zeros<size_t> chunks; // [B]: chunks that hold tokens; what comes after the last token is not read
    size_t most;          // the largest of these
    size_t dealt;         // tasks of a head: all chunks, where the cache is given again, else as many as hold tokens
    Zeros<float> partial; // [B·H][most][stride]: peak [rows], total [rows], sums [rows][padded]

    explicit Decode(const DecodeArguments<T, S>& arguments)
        : a(arguments), cut(a.width), queries(a.tokens * a.groups), rows(queries + a.tokens),
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

struct Fresh {
    float* queries; // [rows][padded] or, for turned keys, [rows][D]: queries over √d, then new keys over their norms and √d
    float* turned;  // [D][kColumns]: a tile's keys, column by column; null where they are read as they lie
    float* fresh;   // [kLanes]: of the last vector, 0 where the one before it has the element too, else 1
    float* weights; // [rows][kColumns]: scores, then weights
    float* totals;  // [rows][kLanes]: a chunk's sums of weights, lane by lane
    float* norms;   // [kColumns]: what the new keys' scores are multiplied by
    float* peaks;   // [N]: of the new keys' rows: √d + log L_ii
    float* zeros;   // a row of the cache that stands for every one without a token
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
    for (size_t t = 0; t < a.tokens; ++t) {
        const T* key = a.k_new + (head * a.tokens + t) * d;
        bool yes = true;
        float norm = 0.0f;
        key_norms(&norm, key, d, 1, &yes, a.epsilon);
        for (size_t k = 0; k < d; ++k) {
            float* column = made.queries + (made.turned == nullptr ? cut.place(k) : k);
            for (size_t g = 0; g < a.groups; ++g)
                column[(t * a.groups + g) * step] = to_float(a.query(head, g, t)[k]) / root_d;
            if (tokens[t]) column[(made.own + t) * step] = to_float(key[k]) * norm / root_d;
        }
        // A padded new token gets no weights: they are exp(score − peak), with a peak beyond reach.
        made.peaks[t] = tokens[t] ? root_d - log_row_factor(norm, root_d, a.epsilon, a.diagonal) : 1e30f;
    }
    return made;
}

// Rows of the cache that are next to each other; `columns` of them, the rest up to whole vectors is empty.
template <class S>
struct StoredTile {
    const S *keys[kColumns], *values[kColumns];
    float key_scale[kColumns], value_scale[kColumns]; // 0 where there is no token; of int8 alone
    float hide[kColumns];                             // added to scores: 0, or kHidden where there is no token
    size_t columns, whole;                            // `whole`: rounded up to vectors
    bool full;                                        // whether all of these hold tokens
    size_t ahead; // elements from here to the next tile, which is asked for meanwhile; 0 where no one reads on
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

// Copies rows narrower than a vector to where Cut::place wants them.
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

// Asks for a row of the next tile, for the second cache: the processor's own prefetching stops at every page, and what is
// asked for shortly before its use is waited for.
template <class S>
LUCID_INLINE void prefetch(const S* row, size_t width) {
    const char* bytes = reinterpret_cast<const char*>(row);
    for (size_t at = 0; at < width * sizeof(S); at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

// Makes what the new keys' scores are multiplied by of the sums of squares: 1 / sqrt(mean(K²) + eps). Where a key is
// s·n, its scores are those of the whole numbers n, and s / sqrt(s² mean(n²) + eps) = 1 / sqrt(mean(n²) + eps / s²).
template <bool Scaled, class S>
void norms_of(float* norms, const StoredTile<S>& tile, size_t width, float epsilon) {
    for (size_t c = 0; c < tile.whole; c += kLanes) {
        Vector mean = load(norms + c) / static_cast<float>(width), added = broadcast(epsilon);
        if constexpr (Scaled) {
            Vector scale = load(tile.key_scale + c);
            Vector ratio = epsilon / (scale * scale);
            added = scale > 0.0f ? ratio : broadcast(1.0f); // a row of zeros, whose scores are 0 whatever its norm
        }
        Vector norm = 1.0f / root(mean + added);
        store(norms + c, load(tile.hide + c) < 0.0f ? Vector{} : norm);
    }
}

// Asks for rows of the cache a few at a time, between pieces of arithmetic: asked for all at once, they would be waited
// for. what(column) is called for every column by the time that `calls` calls have been made.
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

// Turns a row's scores into weights, those of int8 rows times the scale of Y, and returns their sums before that, lane by
// lane. The peak of a query grows to its largest score; that of a new key stays.
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
            // As rounded here: a product that is made again, within the difference to the peak, may be above the peak.
            if constexpr (Scaled || Hidden) store(weights + c, value);
        }
        if (any_larger(highest, before)) peak = largest(highest); // seldom, after the first tiles
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

// The same for all rows of a tile; a chunk's totals and sums are scaled to new peaks.
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

// Scores of all rows for a tile's columns, and the squares of its keys, with lanes along the width.
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
            if (row == 0) {
                score_stored<R, true>(scores, kColumns, token.norms + c, keys, cut, rows, token.fresh, next);
            } else {
                score_stored<R, false>(scores, kColumns, nullptr, keys, cut, rows, token.fresh, next);
            }
        }
    });
}

// Turns a vector of columns, turned[k][c] = keys[c][k], and returns Σ_k keys[c][k]².
template <class S>
LUCID_INLINE Vector turn_columns(float* turned, const S* const* keys, size_t width) {
    constexpr size_t kSums = 4; // one after the other, they would be waited for
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

// The same with lanes along the columns: many rows pay for turning the keys once, and need no sums across lanes.
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
    norms_of<Scaled>(token.norms, tile, cut.width, epsilon);
    soften_token<Scaled>(token, tile, cut, part);
    float* sums = part + 2 * token.rows;
    in_groups(token.rows, [&](auto count, size_t row) {
        constexpr int R = decltype(count)::value;
        const float* weights = token.weights + row * kColumns;
        Ahead next{tile.ahead, row * tile.columns / token.rows, (row + R) * tile.columns / token.rows};
        weigh_stored_rows<R>(sums + row * cut.padded, weights, kColumns, tile.columns, tile.values, cut, next);
    });
}

// Copies rows of the cache to the one that is given, soon after they were read. Nobody reads the copies before the next step.
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
    std::copy(token.peaks, token.peaks + a.tokens, part + token.own);
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
