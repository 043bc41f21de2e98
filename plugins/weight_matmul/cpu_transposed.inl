// The product of a few rows and a transposed weight, such as an output head that shares its matrix with the embedding.
//
// Vector lanes run along the depth: an element of the result is the dot product of two rows, summed in one vector
// register. Each row of the weight is read from memory once; C of them are multiplied by R rows of X at a time. For
// further rows of X, the rows of the weight are in a cache already.
//
// Every element is summed in the same order for any number of rows and threads: lane by lane, then the lanes by halves.
// A row's result does not depend on other rows.

constexpr int kMostRowsTransposed = kLanes == 16 ? 6 : 4; // rows of X whose sums fit into registers

constexpr size_t kPage = 4096; // bytes

// Returns how many rows of the weight to multiply by R rows of X at a time, so that the sums fit into registers.
constexpr int rows_of_weight(int R) {
    if (R == 1) return 4;
    if (R == 2) return kLanes == 16 ? 8 : 4;
    if (R == 3) return kLanes == 16 ? 6 : 3;
    return kLanes == 16 ? 4 : 2;
}

template <class T, class W>
struct TransposedJob {
    const WeightMatMulArguments<T, W>& a;
    const float* x;  // [rows, x_stride], padded with zeros
    size_t x_stride;
    size_t width;    // rows of the weight per task
};

// o[r][c] = Σ_k x[r][k] · w[c][k] for R rows of X and C rows of the weight.
template <int R, int C, class T, class W>
LUCID_INLINE void multiply_pair(T* o, size_t o_stride, const float* x, size_t x_stride, const W* w, size_t depth) {
    Vector total[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) total[r][c] = Vector{};
    size_t whole = depth / kLanes * kLanes;
    auto add = [&](const float* factors, const Vector (&weight)[C]) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            Vector factor = load(factors + r * x_stride);
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) total[r][c] = multiply_add(factor, weight[c], total[r][c]);
        }
    };
    Vector weight[C];
    for (size_t k = 0; k < whole; k += kLanes) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
            const W* row = w + c * depth + k;
            weight[c] = widen(row);
            __builtin_prefetch(row + C * depth, 0, 2); // the same columns of the next rows, into the L2 cache
        }
        add(x + k, weight);
    }
    if (whole < depth) { // a vector load would read from the next row, or past the weight's end
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
            weight[c] = Vector{};
            for (size_t k = whole; k < depth; ++k) weight[c][k - whole] = to_float(w[c * depth + k]);
        }
        add(x + whole, weight);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) from_float(o[r * o_stride + c], sum(total[r][c]));
}

// The same for R = `rows` up to kMostRowsTransposed, and any number of rows of the weight.
template <int R = kMostRowsTransposed, class T, class W>
LUCID_INLINE void multiply_transposed(size_t rows, size_t columns, T* o, size_t o_stride, const float* x,
                                      size_t x_stride, const W* w, size_t depth) {
    if constexpr (R > 0) {
        if (rows != R) {
            multiply_transposed<R - 1>(rows, columns, o, o_stride, x, x_stride, w, depth);
        } else {
            constexpr int C = rows_of_weight(R);
            // Short rows are read one by one: of several streams within one page, the hardware prefetches none.
            bool short_rows = R == 1 && depth * sizeof(W) <= kPage;
            size_t c = 0;
            for (; c + C <= columns && !short_rows; c += C) multiply_pair<R, C>(o + c, o_stride, x, x_stride, w + c * depth, depth);
            for (; c < columns; ++c) multiply_pair<R, 1>(o + c, o_stride, x, x_stride, w + c * depth, depth);
        }
    }
}

template <class T, class W>
void transposed_task(void* data, size_t index) {
    const TransposedJob<T, W>& job = *static_cast<TransposedJob<T, W>*>(data);
    const WeightMatMulArguments<T, W>& a = job.a;
    size_t first = index * job.width, columns = std::min(job.width, a.columns - first);
    size_t groups = (a.rows + kMostRowsTransposed - 1) / kMostRowsTransposed;
    // A single group processes all of the task's weight rows; several take turns on as many as fit into a cache.
    size_t step = groups == 1 ? columns : std::max<size_t>(24, (size_t{1} << 15) / std::max<size_t>(a.depth, 1));
    for (size_t c = 0; c < columns; c += step)
        for (size_t group = 0, row = 0; group < groups; ++group) {
            size_t next = a.rows * (group + 1) / groups;
            multiply_transposed(next - row, std::min(step, columns - c), a.o + row * a.columns + first + c, a.columns,
                                job.x + row * job.x_stride, job.x_stride, a.w + (first + c) * a.depth, a.depth);
            row = next;
        }
}

// Multiplies by a transposed weight: `a.w` is [columns, depth].
template <class T, class W>
void weight_matmul_transposed(const WeightMatMulArguments<T, W>& a, const Pool& pool) {
    if (a.rows == 0 || a.columns == 0) return;
    // Strides of a power of two would map all rows of X to the same cache set, so a stride is one cache line longer.
    size_t stride = rounded_up(a.depth, 4 * kLanes) + 16;
    Zeros<float> x(a.rows * stride);
    for (size_t row = 0; row < a.rows; ++row)
        for (size_t k = 0; k < a.depth; ++k) x[row * stride + k] = to_float(a.x[row * a.depth + k]);
    bool alone = a.rows * a.depth * a.columns < kAlone;
    size_t width = alone ? a.columns : rounded_up((a.columns + kMostTasks - 1) / kMostTasks, 24);
    TransposedJob<T, W> job{a, x.data(), stride, width};
    size_t tasks = (a.columns + width - 1) / width;
    if (tasks == 1)
        transposed_task<T, W>(&job, 0);
    else
        pool.run(transposed_task<T, W>, tasks, &job);
}
