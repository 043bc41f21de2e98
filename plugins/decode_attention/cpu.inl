// The second step of attention of a few new tokens, one task per head, after the chunks of the cache (cpu_chunks.inl).
// It solves the triangular system of the new tokens row by row (for CachedAttention, Y is V), then combines the peaks,
// totals and sums of the chunks with the new tokens in the softmax of each query.

template <class A, class B>
float dot(const A* a, const B* b, size_t width) {
    float total = 0.0f;
    for (size_t k = 0; k < width; ++k) total += to_float(a[k]) * to_float(b[k]);
    return total;
}

// y[t] = v[t] / L_tt − Σ over the cache − Σ over earlier new tokens, row by row. As in a prefill, K and Y of earlier
// new tokens are not rounded to the type of the cache. `norms` receives the inverse norms of the new keys, [N].
template <class T, class S>
void solve_new(const Decode<T, S>& decode, size_t head, const bool* tokens, float* y, float* norms) {
    const DecodeArguments<T, S>& a = decode.a;
    size_t d = a.width, n = a.tokens;
    const T *keys = a.k_new + head * n * d, *values = a.v_new + head * n * d;
    float root_d = std::sqrt(static_cast<float>(d));
    key_norms(norms, keys, d, n, tokens, a.epsilon);
    for (size_t t = 0; t < n; ++t) {
        const T* key = keys + t * d;
        float* row = y + t * d;
        float log_factor = log_row_factor(norms[t], root_d, a.epsilon, a.diagonal); // −log L_tt
        float factor = std::exp(log_factor);
        for (size_t k = 0; k < d; ++k) row[k] = to_float(values[t * d + k]) * factor;
        for (size_t chunk = 0; chunk < decode.chunks[head / a.heads]; ++chunk) {
            const float* received = decode.sums(head, chunk, decode.queries + t);
            for (size_t k = 0; k < d; ++k) row[k] -= received[decode.cut.place(k)];
        }
        for (size_t s = 0; s < t && tokens[t]; ++s) {
            if (!tokens[s]) continue;
            float score = dot(key, keys + s * d, d) * (norms[t] * norms[s] / root_d);
            float weight = std::exp(score - root_d + log_factor);
            for (size_t k = 0; k < d; ++k) row[k] -= weight * y[s * d + k];
        }
    }
}

// Computes one query's attention over the cache, the earlier new tokens and its own token.
template <class T, class S>
void attend_new(const Decode<T, S>& decode, size_t head, size_t t, size_t g, const bool* tokens,
                const float* y, float* sums) {
    const DecodeArguments<T, S>& a = decode.a;
    size_t d = a.width, row = t * a.groups + g;
    const T *query = a.query(head, g, t), *keys = a.k_new + head * a.tokens * d;
    float root_d = std::sqrt(static_cast<float>(d)), total = 1.0f, peak = dot(query, keys + t * d, d) / root_d;
    std::copy(y + t * d, y + (t + 1) * d, sums);
    auto add = [&](float other_peak, float other_total, auto element) {
        float joint = std::max(peak, other_peak), old = std::exp(peak - joint), fresh = std::exp(other_peak - joint);
        total = total * old + other_total * fresh;
        for (size_t k = 0; k < d; ++k) sums[k] = sums[k] * old + element(k) * fresh;
        peak = joint;
    };
    for (size_t s = 0; s < t; ++s)
        if (tokens[s])
            add(dot(query, keys + s * d, d) / root_d, 1.0f, [&](size_t k) { return y[s * d + k]; });
    for (size_t chunk = 0; chunk < decode.chunks[head / a.heads]; ++chunk) {
        const float *part = decode.part(head, chunk), *weighted = decode.sums(head, chunk, row);
        add(part[row], part[decode.rows + row], [&](size_t k) { return weighted[decode.cut.place(k)]; });
    }
    T* out = a.o + ((head * a.groups + g) * a.tokens + t) * d;
    for (size_t k = 0; k < d; ++k) from_float(out[k], sums[k] / total);
}

// Combines a head's chunks: computes Y of the new tokens (or takes V), appends new keys to a growing cache, computes O.
template <class T, class S>
void join_task(void* data, size_t head) {
    const Decode<T, S>& decode = *static_cast<Decode<T, S>*>(data);
    const DecodeArguments<T, S>& a = decode.a;
    size_t d = a.width, n = a.tokens;
    Scratch scratch(n * d + d + n, 3);
    float *y = scratch.take(n * d), *sums = scratch.take(d), *norms = scratch.take(n);
    const bool* tokens = a.mask + head / a.heads * (a.past + n) + a.past;
    if (a.solves) {
        solve_new(decode, head, tokens, y, norms);
        T* y_new = a.y_new + head * a.y_step;
        for (size_t k = 0; k < n * d; ++k) from_float(y_new[k], y[k]);
    } else {
        for (size_t k = 0; k < n * d; ++k) y[k] = to_float(a.v_new[head * n * d + k]);
    }
    if constexpr (std::is_same_v<T, S>)
        if (a.k_present != nullptr)
            std::copy(a.k_new + head * n * d, a.k_new + (head + 1) * n * d, a.k_present + (head * (a.past + n) + a.past) * d);
    for (size_t t = 0; t < n; ++t)
        for (size_t g = 0; g < a.groups; ++g) attend_new(decode, head, t, g, tokens, y, sums);
}

template <class T, class S>
void decode(const DecodeArguments<T, S>& arguments, const Pool& pool) {
    Decode<T, S> decode(arguments);
    size_t heads = arguments.batch * arguments.heads;
    if (heads == 0 || arguments.tokens == 0) return;
    if (decode.dealt != 0) pool.run(chunk_task<T, S>, heads * decode.dealt, &decode);
    pool.run(join_task<T, S>, heads, &decode);
}
