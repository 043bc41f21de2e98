// Packs a weight into `panels`, unless that is null. Returns the panels' size in bytes.
inline size_t pack_weight(const QuantizedWeight& w, uint8_t* panels) {
    size_t count = count_panels(w), bytes = w.blocks * PanelSizes(w).block;
    for (size_t index = 0; index < count && panels != nullptr; ++index) pack_panel(panels + index * bytes, w, index);
    return count * bytes;
}

// Computes the product for the columns of some panels.
template <size_t Bits, class S, class T>
void quantized_matmul_task(void* data, size_t index) {
    const QuantizedMatMulJob<T>& job = *static_cast<QuantizedMatMulJob<T>*>(data);
    const QuantizedMatMulArguments<T>& a = job.a;
    size_t bytes = a.w.blocks * PanelSizes(a.w).block, panels = count_panels(a.w), room = a.panels == nullptr ? bytes / 4 : 0;
    size_t bytewise = job.tiles() && Bits == 4 ? a.depth * kInPanel / sizeof(float) : 0;
    Scratch scratch(room + bytewise + kTileSums + kTileRows * kInPanel, 4);
    float* total = scratch.take(kTileRows * kInPanel);
    int32_t* sums = reinterpret_cast<int32_t*>(scratch.take(kTileSums));
    uint8_t* packed = reinterpret_cast<uint8_t*>(scratch.take(room));
    uint8_t* unpacked = reinterpret_cast<uint8_t*>(scratch.take(bytewise));
    size_t last = panels * (index + 1) / job.tasks;
    for (size_t at = panels * index / job.tasks; at < last; ++at) {
        if (a.panels == nullptr) pack_panel(packed, a.w, at);
        const uint8_t* panel = a.panels == nullptr ? packed : a.panels + at * bytes;
        size_t columns = std::min(kInPanel, a.w.columns - at * kInPanel);
        if (bytewise > 0) unpack_panel(unpacked, panel, a.w);
        for (size_t number = 0; number < job.groups; ++number) {
            if (number == 1 && at + 1 < last && a.panels != nullptr) // this panel is in a cache: fetch the next
                for (size_t line = bytes; line < 2 * bytes; line += kLine) __builtin_prefetch(panel + line, 0, 2);
            size_t row = job.first_row(number), rows = job.first_row(number + 1) - row;
            if (job.tiles())
                multiply_tiles<Bits, S>(rows, total, sums, Bits == 4 ? unpacked : panel, panel, job.group(row), a.w, job.run);
            else
                multiply_group<Bits, S>(rows, total, panel, job.group(row), a.w);
            T* o = a.o + row * a.w.columns + at * kInPanel;
            for (size_t r = 0; r < rows; ++r, o += a.w.columns) {
                if (std::is_same_v<T, float> && columns == kInPanel)
                    std::memcpy(o, total + r * kInPanel, kInPanel * sizeof(float));
                else
                    for (size_t c = 0; c < columns; ++c) from_float(o[c], total[r * kInPanel + c]);
            }
        }
    }
}

template <size_t Bits, class S, class T>
void quantized_matmul_of(const QuantizedMatMulArguments<T>& a, const Pool& pool) {
    size_t columns = a.w.columns, blocks = a.w.blocks, block = a.depth / blocks, run = 4;
    if (a.rows > kInGroup && has_tiles()) run = std::min(kTileRun, block & -block); // the largest that divides a block
    size_t in_group = run > 4 ? kTileRows : kInGroup, groups = (a.rows + in_group - 1) / in_group;
    size_t parts = a.rows * blocks, whole = a.rows * a.depth / sizeof(float);
    Room room(whole + 3 * parts);
    float* steps = room.data() + whole;
    RoundedRows rounded{reinterpret_cast<int8_t*>(room.data()), steps, reinterpret_cast<int32_t*>(steps + parts),
                        a.w.offsets != nullptr ? steps + 2 * parts : nullptr};
    QuantizedMatMulJob<T> job{a, rounded, run, groups, 1};
    size_t products = a.rows * a.depth * columns; // products of few rows are memory-bound and need few threads
    if (products >= kAlone) job.tasks = std::min(std::max(kLeastTasks, products / kTaskProducts), count_panels(a.w));
    if (groups > 1)
        pool.run(round_group<Bits, T>, groups, &job);
    else
        round_group<Bits, T>(&job, 0);
    if (job.tasks > 1)
        pool.run(quantized_matmul_task<Bits, S, T>, job.tasks, &job);
    else
        quantized_matmul_task<Bits, S, T>(&job, 0);
}

template <class T>
void quantized_matmul(const QuantizedMatMulArguments<T>& a, const Pool& pool) {
    if (a.rows == 0 || a.w.columns == 0) return;
    auto of = a.bits == 4 ? quantized_matmul_of<4, Half, T> : quantized_matmul_of<8, Half, T>;
    if (a.w.scale_bytes == sizeof(float)) of = a.bits == 4 ? quantized_matmul_of<4, float, T> : quantized_matmul_of<8, float, T>;
    of(a, pool);
}
