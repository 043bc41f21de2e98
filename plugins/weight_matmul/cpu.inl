// The product of a few rows and a weight, which is read once, as it lies in memory.
//
// Lanes lie along the columns. A block of kDepth rows of the weight meets all rows of X before the next one is read, panel
// by panel: R rows of X by U vectors of columns, whose sums are in registers. Where more than R rows are given, what the
// first of them has read is in the nearest cache for the others.
//
// Every element is summed in the same order whatever the number of rows, of threads and of columns in a panel: kDepth
// products one after the other, from zero, then block by block. A row's result depends on that row alone.

constexpr size_t kDepth = 64;
constexpr size_t kMostRows = kLanes == 16 ? 8 : 4; // rows whose sums are in registers, with three vectors of columns
constexpr size_t kMostTasks = 16;                  // of one product
constexpr size_t kTaskColumns = 384;               // columns of a task: shorter pieces of rows come slower from memory
constexpr size_t kAlone = size_t{1} << 18;         // products below which a second thread costs more than it saves

template <class T, class W>
struct WeightMatMulJob {
    const WeightMatMulArguments<T, W>& a;
    const float* x; // [rows, depth] as floats
    size_t width;   // columns of a task
};

// sums[r][u] += Σ_k x[r][k] · w[k][u] for R rows, U vectors of columns and `depth` rows of the weight.
template <int R, int U, class W>
LUCID_INLINE void multiply_panel(float* sums, size_t sums_stride, const float* x, size_t x_stride, const W* w,
                                 size_t w_stride, size_t depth) {
    Vector total[R][U];
    for (int r = 0; r < R; ++r)
        for (int u = 0; u < U; ++u) total[r][u] = Vector{};
    for (size_t k = 0; k < depth; ++k) {
        const W* row = w + k * w_stride;
        Vector weight[U];
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            weight[u] = widen(row + u * kLanes);
            // Arithmetic hides the memory if the next panel is on its way; one row of floats is read as fast without.
            if constexpr (R > 1 || sizeof(W) < sizeof(float)) __builtin_prefetch(row + (2 * U + u) * kLanes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            Vector factor = broadcast(x[r * x_stride + k]);
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) total[r][u] = multiply_add(factor, weight[u], total[r][u]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            float* sum = sums + r * sums_stride + u * kLanes;
            store(sum, load(sum) + total[r][u]);
        }
}

// The same for R = `rows` up to kMostRows.
template <int U, int R = kMostRows, class W>
LUCID_INLINE void multiply_rows(size_t rows, float* sums, size_t sums_stride, const float* x, size_t x_stride,
                                const W* w, size_t w_stride, size_t depth) {
    if constexpr (R > 0) {
        if (rows == R)
            multiply_panel<R, U>(sums, sums_stride, x, x_stride, w, w_stride, depth);
        else
            multiply_rows<U, R - 1>(rows, sums, sums_stride, x, x_stride, w, w_stride, depth);
    }
}

// The same for any number of rows, in groups of nearly the same size.
template <int U, int Most, class W>
LUCID_INLINE void multiply_groups(size_t rows, float* sums, size_t sums_stride, const float* x, size_t x_stride,
                                  const W* w, size_t w_stride, size_t depth) {
    size_t groups = (rows + Most - 1) / Most;
    for (size_t group = 0, first = 0; group < groups; ++group) {
        size_t next = rows * (group + 1) / groups;
        multiply_rows<U, Most>(next - first, sums + first * sums_stride, sums_stride, x + first * x_stride, x_stride, w,
                               w_stride, depth);
        first = next;
    }
}

// Rows of the weight as floats, where columns end within a vector; the lanes behind them keep what they have.
template <class W>
LUCID_INLINE void widen_last(float* last, const W* w, size_t w_stride, size_t depth, size_t columns) {
    for (size_t k = 0; k < depth; ++k)
        for (size_t c = 0; c < columns; ++c) last[k * kLanes + c] = to_float(w[k * w_stride + c]);
}

// Adds a block of the weight's rows to a task's sums, U vectors of columns at a time.
template <int U, int Most, class W>
void multiply_block(float* sums, size_t padded, size_t rows, const float* x, size_t x_stride, const W* w,
                    size_t w_stride, size_t depth, size_t columns, float* last) {
    size_t c = 0;
    for (; c + U * kLanes <= columns; c += U * kLanes)
        multiply_groups<U, Most>(rows, sums + c, padded, x, x_stride, w + c, w_stride, depth);
    for (; c + kLanes <= columns; c += kLanes)
        multiply_groups<1, Most>(rows, sums + c, padded, x, x_stride, w + c, w_stride, depth);
    if (c < columns) { // within a vector: what lies behind a row may be behind the weight
        widen_last(last, w + c, w_stride, depth, columns - c);
        multiply_groups<1, Most>(rows, sums + c, padded, x, x_stride, last, kLanes, depth);
    }
}

template <class T, class W>
void weight_matmul_task(void* data, size_t index) {
    const WeightMatMulJob<T, W>& job = *static_cast<WeightMatMulJob<T, W>*>(data);
    const WeightMatMulArguments<T, W>& a = job.a;
    size_t first = index * job.width, columns = std::min(job.width, a.columns - first);
    size_t padded = rounded_up(columns, kLanes), room = kDepth * kLanes;
    Scratch scratch(a.rows * padded + room, 2);
    float *sums = scratch.take(a.rows * padded), *last = scratch.take(room);
    std::fill(sums, sums + a.rows * padded, 0.0f);
    std::fill(last, last + room, 0.0f);
    for (size_t k = 0; k < a.depth; k += kDepth) {
        size_t depth = std::min(kDepth, a.depth - k);
        const W* w = a.w + k * a.columns + first;
        if (a.rows == 1)
            multiply_block<kLanes == 16 ? 8 : 12, 1>(sums, padded, a.rows, job.x + k, a.depth, w, a.columns, depth, columns, last);
        else if (a.rows <= kMostRows * 3 / 4)
            multiply_block<kLanes == 16 ? 4 : 3, kMostRows * 3 / 4>(sums, padded, a.rows, job.x + k, a.depth, w, a.columns, depth, columns, last);
        else
            multiply_block<3, kMostRows>(sums, padded, a.rows, job.x + k, a.depth, w, a.columns, depth, columns, last);
    }
    for (size_t row = 0; row < a.rows; ++row)
        for (size_t c = 0; c < columns; ++c) from_float(a.o[row * a.columns + first + c], sums[row * padded + c]);
}

// Columns of a task: a small product is one task, others have at least four where their columns suffice.
inline size_t task_width(size_t rows, size_t depth, size_t columns) {
    if (rows * depth * columns < kAlone) return columns;
    size_t wanted = std::max((columns + kMostTasks - 1) / kMostTasks, std::min(kTaskColumns, (columns + 3) / 4));
    return rounded_up(wanted, wanted < kTaskColumns ? kLanes : 3 * kLanes);
}

template <class T, class W>
void weight_matmul(const WeightMatMulArguments<T, W>& a, const Pool& pool) {
    if (a.rows == 0 || a.columns == 0) return;
    const float* x = nullptr;
    Zeros<float> widened(std::is_same_v<T, float> ? 0 : a.rows * a.depth);
    if constexpr (std::is_same_v<T, float>) {
        x = a.x;
    } else {
        for (size_t i = 0; i < a.rows * a.depth; ++i) widened[i] = to_float(a.x[i]);
        x = widened.data();
    }
    WeightMatMulJob<T, W> job{a, x, task_width(a.rows, a.depth, a.columns)};
    size_t tasks = (a.columns + job.width - 1) / job.width;
    if (tasks == 1)
        weight_matmul_task<T, W>(&job, 0);
    else
        pool.run(weight_matmul_task<T, W>, tasks, &job);
}
