// Solving with a unit lower triangular block on the CPU: substitution into the right-hand sides, with no inverse made.

// Solves (I + X) Y = B, kGroup rows at a time: `rows` rows of B, a multiple of kGroup, `padded` wide, become those of Y.
// Only what X holds below the diagonal is read.
inline void substitute(float* sums, size_t padded, Weights x, size_t rows) {
    for (size_t first = 0; first < rows; first += kGroup) {
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
