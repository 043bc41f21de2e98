// The product of a few rows and a weight, which is read once and not copied.
//
// Vector lanes hold columns. kAtOnce rows of the weight are read side by side, left to right, as a few long streams
// of memory. They are multiplied by R rows of X, whose sums are in a cache. For further groups of R rows of X, the
// weight's rows are in a cache already. Each group prefetches a share of the next rows (small groups all of them).
//
// Each sum is split into parts of equally many rows of the weight. With few rows of X, a task computes one part for all
// columns, so that each thread reads one contiguous piece of the weight: reading short pieces of rows is slow. If the
// sums would not fit into a cache, a task computes all parts for some columns.
//
// Every element is summed in the same order for any number of rows, threads and columns per task: kDepth products (a
// block) one after another in a new accumulator, then block by block, then part by part. The number of parts depends
// only on the weight's shape. So a row's result does not depend on other rows.

constexpr size_t kDepth = 64;                      // rows of the weight in a block
constexpr size_t kAtOnce = 8;                      // rows of the weight read side by side; a divisor of kDepth
constexpr size_t kNear = 8;                        // distance in vectors at which a row is prefetched into the L1 cache
constexpr int kMostRows = kLanes == 16 ? 8 : 4;    // rows of X whose sums fit into registers, with two vectors of columns
constexpr size_t kMostTasks = 16;                  // per product
constexpr size_t kTaskColumns = 704;               // fewest columns per task, or a quarter of all: fewer are slow
constexpr size_t kAlone = size_t{1} << 18;         // multiplications below which a second thread does not pay off
constexpr size_t kLeastParts = 4;                  // most parts of a sum; doubled, up to kMostTasks, as long as each
constexpr size_t kPartElements = size_t{1} << 20;  // … part still has at least this many elements
constexpr size_t kPartColumns = 16384;             // with this many columns, rows are long enough without parts
constexpr size_t kPartSums = 48 << 10;             // largest number of sums that fit into a cache beside the weight

inline size_t divided(size_t count, size_t by) { return (count + by - 1) / by; } // rounded up

// How a product is split: the sums into `parts` of `height` rows of the weight, and the product into `tasks`, each for
// one part and all columns, or for all parts and `width` columns.
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
    float* sums;    // [parts][rows · padded columns], if each task computes one part
    WeightMatMulPlan plan;
};

// The sums of the current block, which start at zero, and the totals of all earlier blocks, to which they are added at the
// block's end. In a group of rows, the sums of two vectors of columns are stored row by row, so that all sums that are
// in registers at the same time are contiguous.
struct WeightMatMulSums {
    float *block, *total; // per group of rows: [columns / 2 vectors][rows of the group][2 vectors]
    size_t padded;        // columns, rounded up to whole vectors
    bool begins, ends; // whether the current rows of the weight are the first, or the last, of a block
    bool is_first; // whether this is the first block, so that `total` has no values yet

    WeightMatMulSums from(size_t elements) const {
        return {block + elements, total + elements, padded, begins, ends, is_first};
    }
};

// The share of the weight's next rows that a group of rows of X prefetches into the L2 cache.
struct WeightMatMulAhead {
    size_t from, count;
};

// block[r][c] += Σ_t factors[t][r] · w[t][c] for R rows, `depth` rows of the weight and U vectors of columns. At the
// end of a block the sums are added to `total` instead.
template <int R, int U, class W>
LUCID_INLINE void multiply_side_by_side(WeightMatMulSums sums, const float* factors, const W* w, size_t w_stride,
                                        size_t depth, WeightMatMulAhead next) {
    Vector sum[R][U];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) sum[r][u] = sums.begins ? Vector{} : load(sums.block + (r * U + u) * kLanes);
    constexpr bool kAll = R <= kMostRows / 2; // a group this small is usually the only one, so it prefetches all rows
    const W* ahead = w + depth * w_stride; // the next rows; those of this loop were prefetched before
    for (size_t t = 0; t < depth; ++t, w += w_stride, ahead += w_stride) {
        Vector weight[U];
        bool asks = kAll || t - next.from < next.count;
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            weight[u] = widen(w + u * kLanes);
            if constexpr (R > 2) { // with fewer rows, the loop is memory-bound anyway
                hold(weight[u]);
                __builtin_prefetch(w + (kNear + u) * kLanes);
            }
        }
        if (asks) {
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) __builtin_prefetch(ahead + u * kLanes, 0, 2);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            Vector factor = broadcast(factors[t * R + r]);
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) sum[r][u] = multiply_add(factor, weight[u], sum[r][u]);
        }
    }
    if (!sums.ends) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) store(sums.block + (r * U + u) * kLanes, sum[r][u]);
        return;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            float* total = sums.total + (r * U + u) * kLanes;
            store(total, (sums.is_first ? Vector{} : load(total)) + sum[r][u]);
        }
}

// The same for R = `rows` up to kMostRows, and all columns, a multiple of kLanes.
template <int R = kMostRows, class W>
LUCID_INLINE void multiply_rows(size_t rows, WeightMatMulSums sums, const float* x, size_t x_stride, const W* w,
                                size_t w_stride, size_t depth, size_t columns, WeightMatMulAhead next) {
    if constexpr (R > 0) {
        if (rows != R) return multiply_rows<R - 1>(rows, sums, x, x_stride, w, w_stride, depth, columns, next);
        float factors[kAtOnce * R]; // contiguous: there are too few registers for an address per row
        for (size_t t = 0; t < depth; ++t)
            for (int r = 0; r < R; ++r) factors[t * R + r] = x[r * x_stride + t];
        size_t c = 0;
        for (; c + 2 * kLanes <= columns; c += 2 * kLanes)
            multiply_side_by_side<R, 2>(sums.from(c * R), factors, w + c, w_stride, depth, next);
        if (c < columns) multiply_side_by_side<R, 1>(sums.from(c * R), factors, w + c, w_stride, depth, next);
    }
}

// Divides the rows of X into groups of similar size, at most kMostRows each; calls what(first row, end, group).
template <class What>
LUCID_INLINE void in_row_groups(size_t rows, What what) {
    size_t groups = divided(rows, kMostRows), first = 0;
    for (size_t group = 0; group < groups; ++group) {
        size_t next = rows * (group + 1) / groups;
        what(first, next, group);
        first = next;
    }
}

// As multiply_rows, for any number of rows, with sums starting at column `column`.
template <class W>
LUCID_INLINE void multiply_groups(size_t rows, WeightMatMulSums sums, size_t column, const float* x, size_t x_stride,
                                  const W* w, size_t w_stride, size_t depth, size_t columns) {
    size_t groups = divided(rows, kMostRows);
    in_row_groups(rows, [&](size_t first, size_t next, size_t group) __attribute__((always_inline)) {
        size_t from = group * depth / groups, count = (group + 1) * depth / groups - from;
        multiply_rows(next - first, sums.from(first * sums.padded + column * (next - first)), x + first * x_stride, x_stride,
                      w, w_stride, depth, columns, {from, count});
    });
}

// Converts the weight's last columns, which do not fill a vector, to float; leaves the other lanes of `last` unchanged.
template <class W>
LUCID_INLINE void widen_last(float* last, const W* w, size_t w_stride, size_t depth, size_t columns) {
    for (size_t k = 0; k < depth; ++k)
        for (size_t c = 0; c < columns; ++c) last[k * kLanes + c] = to_float(w[k * w_stride + c]);
}

// As multiply_groups, for any number of columns; `last` has room for `depth` vectors.
template <class W>
void multiply_columns(size_t rows, WeightMatMulSums sums, const float* x, size_t x_stride, const W* w, size_t w_stride,
                      size_t depth, size_t columns, float* last) {
    size_t whole = columns / kLanes * kLanes;
    multiply_groups(rows, sums, 0, x, x_stride, w, w_stride, depth, whole);
    if (whole == columns) return;
    widen_last(last, w + whole, w_stride, depth, columns - whole); // no loads past the weight's end
    multiply_groups(rows, sums, whole, x, x_stride, last, kLanes, depth, kLanes);
}

// total[r][c] = Σ_t x[r][t] · w[t][first + c] over one part of the sum.
template <class T, class W>
void multiply_part(const WeightMatMulJob<T, W>& job, size_t part, WeightMatMulSums sums, size_t first, size_t columns,
                   float* last) {
    const WeightMatMulArguments<T, W>& a = job.a;
    size_t begin = part * job.plan.height, end = std::min(begin + job.plan.height, a.depth);
    if (begin >= end) std::fill(sums.total, sums.total + a.rows * sums.padded, 0.0f);
    for (size_t k = begin; k < end; k += kAtOnce) {
        size_t depth = std::min(kAtOnce, end - k), next = k + depth;
        sums.begins = k % kDepth == 0;
        sums.is_first = k - begin < kDepth;
        sums.ends = next % kDepth == 0 || next == end;
        const W* w = a.w + k * a.columns + first;
        multiply_columns(a.rows, sums, job.x + k, a.depth, w, a.columns, depth, columns, last);
    }
}

// o[r][c] = Σ sums[part], part by part; consecutive parts are `size` elements apart.
template <class T>
void write_sums(T* o, size_t o_stride, size_t rows, size_t columns, const float* sums, size_t parts, size_t size) {
    size_t whole = columns / kLanes * kLanes, padded = rounded_up(columns, kLanes);
    in_row_groups(rows, [&](size_t first, size_t next, size_t) {
        const float* from = sums + first * padded;
        for (size_t c = 0, vectors; c < columns; c += vectors * kLanes) {
            vectors = c + 2 * kLanes <= whole ? 2 : 1;
            for (size_t row = first; row < next; ++row)
                for (size_t u = 0; u < vectors; ++u, from += kLanes) {
                    Vector sum = load(from);
                    for (size_t part = 1; part < parts; ++part) sum = sum + load(from + part * size);
                    size_t at = c + u * kLanes;
                    T* to = o + row * o_stride + at;
                    if constexpr (std::is_same_v<T, float>) {
                        if (at < whole) {
                            store(to, sum);
                            continue;
                        }
                    }
                    for (size_t lane = 0; lane < std::min(kLanes, columns - at); ++lane) from_float(to[lane], sum[lane]);
                }
        }
    });
}

template <class T, class W>
void weight_matmul_task(void* data, size_t index) {
    const WeightMatMulJob<T, W>& job = *static_cast<WeightMatMulJob<T, W>*>(data);
    const WeightMatMulArguments<T, W>& a = job.a;
    bool by_part = job.plan.by_part;
    size_t first = by_part ? 0 : index * job.plan.width, columns = std::min(job.plan.width, a.columns - first);
    size_t padded = rounded_up(columns, kLanes), room = kAtOnce * kLanes, size = a.rows * padded;
    Scratch scratch((by_part ? 1 : 3) * size + room, 4);
    float *block = scratch.take(size), *last = scratch.take(room);
    std::fill(last, last + room, 0.0f);
    WeightMatMulSums sums{block, nullptr, padded, true, false, true};
    if (by_part) {
        sums.total = job.sums + index * size;
        return multiply_part(job, index, sums, first, columns, last);
    }
    float* whole = scratch.take(size);
    sums.total = scratch.take(size);
    multiply_part(job, 0, sums, first, columns, last);
    for (size_t part = 1; part < job.plan.parts; ++part) {
        std::swap(sums.total, whole);
        multiply_part(job, part, sums, first, columns, last);
        for (size_t i = 0; i < size; ++i) sums.total[i] = whole[i] + sums.total[i];
    }
    write_sums(a.o + first, a.columns, a.rows, columns, sums.total, 1, size);
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
    size_t size = a.rows * rounded_up(a.columns, kLanes);
    Room sums(plan.by_part ? plan.parts * size : 0);
    WeightMatMulJob<T, W> job{a, x, sums.data(), plan};
    if (plan.tasks == 1)
        weight_matmul_task<T, W>(&job, 0);
    else
        pool.run(weight_matmul_task<T, W>, plan.tasks, &job);
    if (plan.by_part) write_sums(a.o, a.columns, a.rows, a.columns, sums.data(), plan.parts, size);
}
