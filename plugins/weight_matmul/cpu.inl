// The product of a few rows and a weight, which is read once, as it lies in memory.
//
// Lanes lie along the columns. kAtOnce rows of the weight are read from left to right side by side, so that memory sees a few
// long streams, and meet R rows of X, whose sums come from the nearest cache and return to it. Where more than R rows are given,
// what the first of them has read is in a near cache for the others. Rows of the sums are an odd number of vectors apart: those
// of weights with 1024 columns would all fall on the same few places of a cache.
//
// A sum has several parts, of as many of the weight's rows each. Where few rows of X make few sums, a task is one part of all
// columns, so that each thread reads the weight as one piece: memory gives short pieces of its rows slowly. Where sums would
// not stay in a cache, a task is all parts of some columns.
//
// Every element is summed in the same order whatever the number of rows, of threads and of columns in a task: kDepth
// products one after the other, from zero, then block by block, then part by part. How many parts there are, the weight's
// shape alone decides. So a row's result depends on that row alone.

constexpr size_t kDepth = 64;
constexpr size_t kAtOnce = 8;                      // rows of the weight; a divisor of kDepth
constexpr size_t kNear = 8;                        // vectors of a row that are asked for ahead, for the first cache
constexpr int kMostRows = kLanes == 16 ? 8 : 4;    // rows of X whose sums are in registers, with two vectors of columns
constexpr size_t kMostTasks = 16;                  // of one product
constexpr size_t kTaskColumns = 704;               // columns of a task: shorter pieces of rows come slower from memory
constexpr size_t kAlone = size_t{1} << 18;         // products below which a second thread costs more than it saves
constexpr size_t kLeastParts = 4;                  // of a sum; twice as many, and again, of larger weights
constexpr size_t kPartElements = size_t{1} << 20;  // that a part has then
constexpr size_t kPartColumns = 16384;             // columns from which on pieces of a row are long enough
constexpr size_t kPartSums = 48 << 10;             // sums of a task that a near cache holds beside the weight

inline size_t divided(size_t count, size_t by) { return (count + by - 1) / by; } // rounded up

// How a product is divided: sums into `parts` of `height` rows of the weight, and the product into `tasks`, of a part and all
// columns each or of all parts and `width` columns.
struct WeightMatMulPlan {
    size_t parts = 1, height, tasks = 1, width;
    bool by_part;

    WeightMatMulPlan(size_t rows, size_t depth, size_t columns) : height(depth), width(columns) {
        if (columns < kPartColumns && depth * columns >= kAlone) {
            size_t most = kLeastParts;
            while (most < kMostTasks && depth * columns >= 2 * most * kPartElements) most *= 2;
            height = rounded_up(divided(depth, most), kDepth);
            parts = divided(depth, height);
        }
        by_part = parts > 1 && rows * columns <= kPartSums;
        if (by_part) {
            tasks = parts;
        } else if (rows * depth * columns >= kAlone) {
            size_t wanted = std::max(divided(columns, kMostTasks), std::min(kTaskColumns, divided(columns, 4)));
            width = rounded_up(wanted, kLanes);
            tasks = divided(columns, width);
        }
    }
};

template <class T, class W>
struct WeightMatMulJob {
    const WeightMatMulArguments<T, W>& a;
    const float* x; // [rows, depth] as floats
    float* sums;    // [parts, rows, columns], of tasks by part
    WeightMatMulPlan plan;
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
            if constexpr (R > 2) { // fewer wait for memory alone
                hold(weight[u]);
                __builtin_prefetch(w + (kNear + u) * kLanes);
            }
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

// total[r][c] = Σ_t x[r][t] · w[t][first + c] over one part of the sum.
template <class T, class W>
void multiply_part(const WeightMatMulJob<T, W>& job, size_t part, WeightMatMulSums sums, size_t first, size_t columns,
                   float* last) {
    const WeightMatMulArguments<T, W>& a = job.a;
    size_t begin = part * job.plan.height, end = std::min(begin + job.plan.height, a.depth);
    std::fill(sums.total, sums.total + a.rows * sums.stride, 0.0f);
    for (size_t k = begin; k < end; k += kAtOnce) {
        size_t depth = std::min(kAtOnce, end - k), next = k + depth;
        sums.begins = k % kDepth == 0;
        sums.ends = next % kDepth == 0 || next == end;
        const W* w = a.w + k * a.columns + first;
        multiply_columns(a.rows, sums, job.x + k, a.depth, w, a.columns, depth, columns, last);
    }
}

template <class T, class W>
void weight_matmul_task(void* data, size_t index) {
    const WeightMatMulJob<T, W>& job = *static_cast<WeightMatMulJob<T, W>*>(data);
    const WeightMatMulArguments<T, W>& a = job.a;
    bool by_part = job.plan.by_part;
    size_t first = by_part ? 0 : index * job.plan.width, columns = std::min(job.plan.width, a.columns - first);
    size_t padded = (divided(columns, kLanes) | 1) * kLanes, room = kAtOnce * kLanes, size = a.rows * padded;
    Scratch scratch(3 * size + room, 4);
    WeightMatMulSums sums{scratch.take(size), scratch.take(size), padded, true, false};
    float *whole = scratch.take(size), *last = scratch.take(room);
    std::fill(last, last + room, 0.0f);
    multiply_part(job, by_part ? index : 0, sums, first, columns, last);
    for (size_t part = 1; part < job.plan.parts && !by_part; ++part) {
        std::swap(sums.total, whole);
        multiply_part(job, part, sums, first, columns, last);
        for (size_t i = 0; i < size; ++i) sums.total[i] = whole[i] + sums.total[i];
    }
    for (size_t row = 0; row < a.rows; ++row) {
        const float* total = sums.total + row * padded;
        if (by_part)
            std::copy(total, total + columns, job.sums + (index * a.rows + row) * columns);
        else
            for (size_t c = 0; c < columns; ++c) from_float(a.o[row * a.columns + first + c], total[c]);
    }
}

// sums[i] += Σ sums[part · size + i], part by part.
inline void add_parts(float* sums, size_t parts, size_t size) {
    size_t whole = size / kLanes * kLanes;
    for (size_t i = 0; i < whole; i += kLanes) {
        Vector sum = load(sums + i);
        for (size_t part = 1; part < parts; ++part) sum = sum + load(sums + part * size + i);
        store(sums + i, sum);
    }
    for (size_t i = whole; i < size; ++i)
        for (size_t part = 1; part < parts; ++part) sums[i] += sums[part * size + i];
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
    WeightMatMulPlan plan(a.rows, a.depth, a.columns);
    size_t outputs = a.rows * a.columns;
    Zeros<float> sums(plan.by_part ? plan.parts * outputs : 0);
    WeightMatMulJob<T, W> job{a, x, sums.data(), plan};
    if (plan.tasks == 1)
        weight_matmul_task<T, W>(&job, 0);
    else
        pool.run(weight_matmul_task<T, W>, plan.tasks, &job);
    if (!plan.by_part) return;
    add_parts(sums.data(), plan.parts, outputs);
    for (size_t i = 0; i < outputs; ++i) from_float(a.o[i], sums[i]);
}
