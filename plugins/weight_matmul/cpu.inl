// The product of a few rows and a weight, which is read once, as it lies in memory.
//
// Lanes lie along the columns. kAtOnce rows of the weight are read from left to right side by side, so that memory sees a few
// long streams, and meet R rows of X, whose sums come from the nearest cache and return to it. Where more than R rows are given,
// what the first of them has read is in a near cache for the others.
//
// Every element is summed in the same order whatever the number of rows, of threads and of columns in a task: kDepth
// products one after the other, from zero, then block by block. A row's result depends on that row alone.

constexpr size_t kDepth = 64;
constexpr size_t kAtOnce = 16;                     // rows of the weight; a divisor of kDepth
constexpr int kMostRows = kLanes == 16 ? 8 : 4;    // rows of X whose sums are in registers, with two vectors of columns
constexpr size_t kMostTasks = 16;                  // of one product
constexpr size_t kTaskColumns = 704;               // columns of a task: shorter pieces of rows come slower from memory
constexpr size_t kAlone = size_t{1} << 18;         // products below which a second thread costs more than it saves

template <class T, class W>
struct WeightMatMulJob {
    const WeightMatMulArguments<T, W>& a;
    const float* x; // [rows, depth] as floats
    size_t width;   // columns of a task
};

// Where sums are: those of the block, which begin at zero with its first rows, and those of all blocks before it, to which
// they are added after its last.
struct WeightMatMulSums {
    float *block, *total; // [rows, stride]
    size_t stride;
    bool begins, ends;

    WeightMatMulSums from(size_t row, size_t column) const {
        size_t at = row * stride + column;
        return {block + at, total + at, stride, begins, ends};
    }
};

// block[r][c] += Σ_t factors[t][r] · w[t][c] for R rows, `depth` rows of the weight and U vectors of columns.
template <int R, int U, class W>
LUCID_INLINE void multiply_side_by_side(WeightMatMulSums sums, const float* factors, const W* w, size_t w_stride,
                                        size_t depth) {
    Vector sum[R][U];
    for (int r = 0; r < R; ++r)
        for (int u = 0; u < U; ++u) sum[r][u] = sums.begins ? Vector{} : load(sums.block + r * sums.stride + u * kLanes);
    const W* ahead = w + depth * w_stride; // what comes next, for the second cache: what this loop reads is there already
    for (size_t t = 0; t < depth; ++t, w += w_stride, ahead += w_stride) {
        Vector weight[U];
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            weight[u] = widen(w + u * kLanes);
            __builtin_prefetch(ahead + u * kLanes, 0, 2);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            Vector factor = broadcast(factors[t * R + r]);
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) sum[r][u] = multiply_add(factor, weight[u], sum[r][u]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int u = 0; u < U; ++u) {
            size_t at = r * sums.stride + u * kLanes;
            if (sums.ends)
                store(sums.total + at, load(sums.total + at) + sum[r][u]);
            else
                store(sums.block + at, sum[r][u]);
        }
}

// The same for R = `rows` up to kMostRows and columns that are a multiple of kLanes.
template <int R = kMostRows, class W>
LUCID_INLINE void multiply_rows(size_t rows, WeightMatMulSums sums, const float* x, size_t x_stride, const W* w,
                                size_t w_stride, size_t depth, size_t columns) {
    if constexpr (R > 0) {
        if (rows != R) return multiply_rows<R - 1>(rows, sums, x, x_stride, w, w_stride, depth, columns);
        float factors[kAtOnce * R]; // side by side: the address of each row would be a register that there is not
        for (size_t t = 0; t < depth; ++t)
            for (int r = 0; r < R; ++r) factors[t * R + r] = x[r * x_stride + t];
        size_t c = 0;
        for (; c + 2 * kLanes <= columns; c += 2 * kLanes)
            multiply_side_by_side<R, 2>(sums.from(0, c), factors, w + c, w_stride, depth);
        if (c < columns) multiply_side_by_side<R, 1>(sums.from(0, c), factors, w + c, w_stride, depth);
    }
}

// The same for any number of rows, in groups of nearly the same size.
template <class W>
LUCID_INLINE void multiply_groups(size_t rows, WeightMatMulSums sums, const float* x, size_t x_stride, const W* w,
                                  size_t w_stride, size_t depth, size_t columns) {
    size_t groups = (rows + kMostRows - 1) / kMostRows, first = 0;
    for (size_t group = 0; group < groups; ++group) {
        size_t next = rows * (group + 1) / groups;
        multiply_rows(next - first, sums.from(first, 0), x + first * x_stride, x_stride, w, w_stride, depth, columns);
        first = next;
    }
}

// Rows of the weight as floats, where columns end within a vector; the lanes behind them keep what they have.
template <class W>
LUCID_INLINE void widen_last(float* last, const W* w, size_t w_stride, size_t depth, size_t columns) {
    for (size_t k = 0; k < depth; ++k)
        for (size_t c = 0; c < columns; ++c) last[k * kLanes + c] = to_float(w[k * w_stride + c]);
}

// The same for any number of columns; `last` has room for `depth` vectors.
template <class W>
void multiply_columns(size_t rows, WeightMatMulSums sums, const float* x, size_t x_stride, const W* w, size_t w_stride,
                      size_t depth, size_t columns, float* last) {
    size_t whole = columns / kLanes * kLanes;
    multiply_groups(rows, sums, x, x_stride, w, w_stride, depth, whole);
    if (whole == columns) return;
    widen_last(last, w + whole, w_stride, depth, columns - whole); // what lies behind a row may be behind the weight
    multiply_groups(rows, sums.from(0, whole), x, x_stride, last, kLanes, depth, kLanes);
}

template <class T, class W>
void weight_matmul_task(void* data, size_t index) {
    const WeightMatMulJob<T, W>& job = *static_cast<WeightMatMulJob<T, W>*>(data);
    const WeightMatMulArguments<T, W>& a = job.a;
    size_t first = index * job.width, columns = std::min(job.width, a.columns - first);
    size_t padded = rounded_up(columns, kLanes), room = kAtOnce * kLanes;
    Scratch scratch(2 * a.rows * padded + room, 3);
    WeightMatMulSums sums{scratch.take(a.rows * padded), scratch.take(a.rows * padded), padded, true, false};
    float* last = scratch.take(room);
    std::fill(sums.total, sums.total + a.rows * padded, 0.0f);
    std::fill(last, last + room, 0.0f);
    for (size_t k = 0; k < a.depth; k += kAtOnce) {
        size_t depth = std::min(kAtOnce, a.depth - k), next = k + depth;
        sums.begins = k % kDepth == 0;
        sums.ends = next % kDepth == 0 || next == a.depth;
        const W* w = a.w + k * a.columns + first;
        multiply_columns(a.rows, sums, job.x + k, a.depth, w, a.columns, depth, columns, last);
    }
    for (size_t row = 0; row < a.rows; ++row)
        for (size_t c = 0; c < columns; ++c) from_float(a.o[row * a.columns + first + c], sums.total[row * padded + c]);
}

// Columns of a task: a small product is one task, others have at least four where their columns suffice.
inline size_t task_width(size_t rows, size_t depth, size_t columns) {
    if (rows * depth * columns < kAlone) return columns;
    size_t wanted = std::max((columns + kMostTasks - 1) / kMostTasks, std::min(kTaskColumns, (columns + 3) / 4));
    return rounded_up(wanted, kLanes);
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
