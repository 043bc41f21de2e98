// Solves with a unit lower triangular block on the CPU by substitution; no inverse is computed.

// Solves (I + X) Y = B for `rows` rows (a multiple of kGroup) of width `padded`, kGroup at a time; `sums` is B, then Y.
// It reads only the part of X below the diagonal. Rows before `begin`, a multiple of kGroup, are solved already.
inline void substitute(float* sums, size_t padded, Weights x, size_t rows, size_t begin = 0) {
    for (size_t first = begin; first < rows; first += kGroup) {
        float* group = sums + first * padded;
        Weights own = x.row(first);
        merge_rows<kGroup>(group, own, first, sums, padded,
                           [](int, Vector& sum, const Vector& total) { sum -= total; });
        for (size_t row = 1; row < kGroup; ++row)
            for (size_t before = 0; before < row; ++before) {
                float weight = own.at[row * x.row_step + (first + before) * x.column_step];
                for (size_t k = 0; k < padded; k += kLanes) {
                    Vector left = load(group + row * padded + k);
                    store(group + row * padded + k, left - weight * load(group + before * padded + k));
                }
            }
    }
}
