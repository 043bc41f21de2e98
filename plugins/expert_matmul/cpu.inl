// The products of rows and their experts' matrices: each task multiplies one expert's rows by some rows of its matrix,
// as weight_matmul_transposed does. Matrices of experts without rows are not read.

template <class T>
struct ExpertJob {
    const ExpertMatMulArguments<T>& a;
    const float* x; // [rows, stride], sorted by expert, padded with zeros
    size_t stride;
    T* o;           // [rows, columns], sorted by expert
    size_t parts;   // tasks per expert
    size_t width;   // rows of the matrix per task, at most
};

template <class T>
void expert_task(void* data, size_t index) {
    const ExpertJob<T>& job = *static_cast<ExpertJob<T>*>(data);
    const ExpertMatMulArguments<T>& a = job.a;
    const ExpertRows& own = a.chosen[index / job.parts];
    size_t first = index % job.parts * job.width, end = std::min(first + job.width, a.columns);
    size_t groups = (own.rows + kMostRowsTransposed - 1) / kMostRowsTransposed;
    // A single group of rows of x processes all of the task's matrix rows; several take turns on small pieces of them.
    size_t step = groups == 1 ? job.width : std::max<size_t>(24, (size_t{1} << 15) / std::max<size_t>(a.depth, 1));
    for (size_t c = first; c < end; c += step)
        for (size_t group = 0, row = 0; group < groups; ++group) {
            size_t next = own.rows * (group + 1) / groups, place = own.first + row;
            multiply_transposed(next - row, std::min(step, end - c), job.o + place * a.columns + c, a.columns,
                                job.x + place * job.stride, job.stride, a.w + (own.expert * a.columns + c) * a.depth,
                                a.depth);
            row = next;
        }
}

template <class T>
void expert_matmul(const ExpertMatMulArguments<T>& a, const Pool& pool) {
    if (a.rows == 0 || a.columns == 0) return;
    size_t stride = rounded_up(a.depth, 4 * kLanes) + 16; // as in weight_matmul_transposed
    Zeros<float> x(a.rows * stride);
    Zeros<T> o(a.rows * a.columns);
    for (size_t place = 0; place < a.rows; ++place)
        for (size_t k = 0; k < a.depth; ++k) x[place * stride + k] = to_float(a.x[a.order[place] * a.depth + k]);
    bool alone = a.rows * a.depth * a.columns < kAlone;
    size_t wanted = alone ? 1 : (2 * kMostTasks + a.chosen_count - 1) / a.chosen_count;
    size_t width = rounded_up((a.columns + wanted - 1) / wanted, 24), parts = (a.columns + width - 1) / width;
    ExpertJob<T> job{a, x.data(), stride, o.data(), parts, width};
    size_t tasks = a.chosen_count * parts;
    if (alone)
        for (size_t task = 0; task < tasks; ++task) expert_task<T>(&job, task);
    else
        pool.run(expert_task<T>, tasks, &job);
    for (size_t place = 0; place < a.rows; ++place)
        std::memcpy(a.o + a.order[place] * a.columns, o.data() + place * a.columns, a.columns * sizeof(T));
}
