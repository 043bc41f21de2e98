// Whether blocks of `bytes` bytes are a quarter, a half or whole lines, as multiply_row needs.
inline bool fills_lines(size_t bytes) { return bytes == kLine / 4 || bytes == kLine / 2 || bytes % kLine == 0; }

// Computes the product for the columns of some panels.
template <size_t Bits, class T, class S>
void quantized_matmul_task(void* data, size_t index) {
    const QuantizedMatMulJob<T, S>& job = *static_cast<QuantizedMatMulJob<T, S>*>(data);
    const QuantizedMatMulArguments<T, S>& a = job.a;
    size_t bytes = a.depth * Bits / 8, zero_bytes = (a.blocks * Bits + 7) / 8, parts = a.blocks * kInPanel;
    Scratch scratch(a.depth * kInPanel / 4 + 3 * parts + kInGroup * kInPanel, 5);
    Panel panel;
    panel.numbers = reinterpret_cast<uint8_t*>(scratch.take(a.depth * kInPanel / 4));
    panel.scales = scratch.take(parts);
    int32_t* zero_points = reinterpret_cast<int32_t*>(scratch.take(parts));
    panel.zero_points = a.zero_points != nullptr ? zero_points : nullptr;
    panel.offsets = a.offsets != nullptr ? scratch.take(parts) : nullptr;
    float* total = scratch.take(kInGroup * kInPanel);
    size_t last = job.panels() * (index + 1) / job.tasks;
    for (size_t at = job.panels() * index / job.tasks; at < last; ++at) {
        size_t first = at * kInPanel, columns = std::min(kInPanel, a.columns - first);
        for (size_t byte = 0; byte < bytes && !job.alone; byte += kLine)
            transpose_lines<Bits>(panel.numbers + byte * 8 / Bits * kInPanel, a.w + first * bytes + byte, bytes, columns,
                                  std::min(kLine, bytes - byte));
        transpose_scales(panel.scales, a.scales + first * a.blocks, columns, a.blocks);
        if (a.zero_points != nullptr)
            copy_zero_points<Bits>(zero_points, a.zero_points + first * zero_bytes, columns, a.blocks);
        if (a.offsets != nullptr) copy_offsets(panel.offsets, a.offsets + first, columns, a.blocks, a.columns);
        for (size_t number = 0; number < job.groups; ++number) {
            size_t row = job.first_row(number), rows = job.first_row(number + 1) - row;
            Group group = job.group(row);
            if (job.alone)
                multiply_row<Bits>(total, a.w + first * bytes, columns, panel, group, a.blocks, bytes / a.blocks);
            else if (has_dots())
                multiply_group(rows, total, panel, group, a.blocks, job.block() / 4);
            else
                multiply_panel_plainly(rows, total, panel, group, a.blocks, job.block() / 4);
            for (size_t r = 0; r < rows; ++r)
                for (size_t c = 0; c < columns; ++c)
                    from_float(a.o[(row + r) * a.columns + first + c], total[r * kInPanel + c]);
        }
    }
}

template <size_t Bits, class T, class S>
void quantized_matmul_of(const QuantizedMatMulArguments<T, S>& a, const Pool& pool) {
    bool alone = has_dots() && a.rows <= kAloneRows && fills_lines(a.depth / a.blocks * Bits / 8);
    size_t groups = alone ? a.rows : (a.rows + kInGroup - 1) / kInGroup;
    Zeros<int8_t> numbers(a.rows * a.depth + 2 * kLine); // whole lines are read
    Zeros<float> steps(a.rows * a.blocks);
    Zeros<int32_t> sums(a.rows * a.blocks);
    Zeros<float> totals(a.offsets != nullptr ? a.rows * a.blocks : 0);
    float* exact = a.offsets != nullptr ? totals.data() : nullptr;
    QuantizedMatMulJob<T, S> job{a, {numbers.data(), steps.data(), sums.data(), exact}, groups, 1, alone};
    size_t products = a.rows * a.depth * a.columns; // a product of few rows is bound by memory, and needs few threads
    if (products >= kAlone) job.tasks = std::min(std::max(kLeastTasks, products / kTaskProducts), job.panels());
    if (groups > 1)
        pool.run(round_group<Bits, T, S>, groups, &job);
    else
        round_group<Bits, T, S>(&job, 0);
    if (job.tasks > 1)
        pool.run(quantized_matmul_task<Bits, T, S>, job.tasks, &job);
    else
        quantized_matmul_task<Bits, T, S>(&job, 0);
}

template <class T, class S>
void quantized_matmul(const QuantizedMatMulArguments<T, S>& a, const Pool& pool) {
    if (a.rows == 0 || a.columns == 0) return;
    if (a.bits == 4)
        quantized_matmul_of<4>(a, pool);
    else
        quantized_matmul_of<8>(a, pool);
}
