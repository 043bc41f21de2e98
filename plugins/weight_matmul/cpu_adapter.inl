// Y + X · A · B, with A and B of each batch row's LoRA adapter, which are read in place.
//
// Each task computes one batch row, whose sums do not depend on other rows.

constexpr size_t kRowsOfB = 4; // rows of B added to the sums at once
constexpr size_t kAloneAdapters = size_t{1} << 15; // multiplications below which a second thread does not pay off

// h = x · A
template <class T>
LUCID_INLINE void multiply_down(float* h, const T* x, const T* a, size_t depth, size_t rank) {
    size_t whole = rank / kLanes * kLanes;
    for (size_t r = 0; r < whole; r += kLanes) {
        Vector sums[4] = {}; // independent sums hide the latency of multiply_add
        size_t k = 0;
        for (; k + 4 <= depth; k += 4)
            for (size_t i = 0; i < 4; ++i)
                sums[i] = multiply_add(broadcast(to_float(x[k + i])), widen(a + (k + i) * rank + r), sums[i]);
        for (; k < depth; ++k) sums[0] = multiply_add(broadcast(to_float(x[k])), widen(a + k * rank + r), sums[0]);
        store(h + r, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    std::fill(h + whole, h + rank, 0.0f);
    for (size_t k = 0; whole < rank && k < depth; ++k)
        for (size_t r = whole; r < rank; ++r) h[r] += to_float(x[k]) * to_float(a[k * rank + r]);
}

// sums += Σ h[r] · b[r] for R rows of B
template <int R, class T>
LUCID_INLINE void add_rows(float* sums, const float* h, const T* b, size_t columns) {
    size_t c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
        Vector sum = load(sums + c);
        for (int r = 0; r < R; ++r) sum = multiply_add(broadcast(h[r]), widen(b + r * columns + c), sum);
        store(sums + c, sum);
    }
    for (; c < columns; ++c)
        for (int r = 0; r < R; ++r) sums[c] += h[r] * to_float(b[r * columns + c]);
}

template <class T>
void adapter_task(void* data, size_t row) {
    const AdapterMatMulArguments<T>& p = *static_cast<const AdapterMatMulArguments<T>*>(data);
    size_t id = static_cast<size_t>(p.ids[row]);
    Zeros<float> h(p.rank), sums(p.columns);
    for (size_t token = row * p.tokens; token < (row + 1) * p.tokens; ++token) {
        const T* y = p.y + token * p.columns;
        T* o = p.o + token * p.columns;
        if (id == 0) {
            std::copy(y, y + p.columns, o);
            continue;
        }
        const T* b = p.b + id * p.rank * p.columns;
        multiply_down(h.data(), p.x + token * p.depth, p.a + id * p.depth * p.rank, p.depth, p.rank);
        for (size_t c = 0; c < p.columns; ++c) sums[c] = to_float(y[c]);
        size_t r = 0;
        for (; r + kRowsOfB <= p.rank; r += kRowsOfB) add_rows<kRowsOfB>(sums.data(), h.data() + r, b + r * p.columns, p.columns);
        for (; r < p.rank; ++r) add_rows<1>(sums.data(), h.data() + r, b + r * p.columns, p.columns);
        for (size_t c = 0; c < p.columns; ++c) from_float(o[c], sums[c]);
    }
}

template <class T>
void adapter_matmul(const AdapterMatMulArguments<T>& arguments, const Pool& pool) {
    AdapterMatMulArguments<T> shared = arguments;
    size_t products = shared.tokens * shared.rank * (shared.depth + shared.columns);
    if (shared.batch > 1 && shared.batch * products > kAloneAdapters)
        pool.run(adapter_task<T>, shared.batch, &shared);
    else
        for (size_t row = 0; row < shared.batch; ++row) adapter_task<T>(&shared, row);
}
