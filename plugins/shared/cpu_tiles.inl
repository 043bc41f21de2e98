// Copies rows of K, Y and V to float32 tiles, padded with zeros to whole vectors; rows of padding tokens become zero.

LUCID_INLINE float to_float(float value) { return value; }
LUCID_INLINE void from_float(float& to, float value) { to = value; }

#if LUCID_HAS_F16C
LUCID_INLINE float to_float(Half value) { return _cvtsh_ss(value.bits); }
LUCID_INLINE void from_float(Half& to, float value) { to.bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
#else
LUCID_INLINE float to_float(Half value) { return half_to_float(value.bits); }
LUCID_INLINE void from_float(Half& to, float value) { to.bits = float_to_half(value); }
#endif

LUCID_INLINE float to_float(int8_t value) { return value; }

// Loads kLanes elements and converts them to float.
LUCID_INLINE Vector widen(const float* from) { return load(from); }
#if LUCID_LANES == 16
LUCID_INLINE Vector widen(const Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
LUCID_INLINE Vector widen(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
#elif LUCID_LANES == 8
LUCID_INLINE Vector widen(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
LUCID_INLINE Vector widen(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
#else
template <class S>
LUCID_INLINE Vector widen(const S* from) {
    Vector value{};
    for (size_t lane = 0; lane < kLanes; ++lane) value[lane] = to_float(from[lane]);
    return value;
}
#endif

// An array of zeros. Not std::vector: the linker might keep only its AVX-512 code, also for files for older processors.
template <class T>
class Zeros {
public:
    explicit Zeros(size_t count) : data_(static_cast<T*>(std::calloc(std::max<size_t>(count, 1), sizeof(T)))) {
        if (data_ == nullptr) throw std::bad_alloc();
    }
    Zeros(const Zeros&) = delete;
    Zeros& operator=(const Zeros&) = delete;
    ~Zeros() { std::free(data_); }
    T* data() const { return data_; }
    T& operator[](size_t index) const { return data_[index]; }

private:
    T* data_;
};

// An array of uninitialised floats, aligned to a cache line.
class Room {
public:
    explicit Room(size_t count) : data_(static_cast<float*>(std::aligned_alloc(64, rounded_up(count * sizeof(float) + 1, 64)))) {
        if (data_ == nullptr) throw std::bad_alloc();
    }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    ~Room() { std::free(data_); }
    float* data() const { return data_; }

private:
    float* data_;
};

// Scratch memory of one task; its thread keeps the memory for its next task.
class Scratch {
public:
    // Provides `floats` floats in `pieces` pieces, each of which may need 64 more bytes for alignment.
    explicit Scratch(size_t floats, size_t pieces) {
        thread_local Memory memory;
        size_t bytes = (floats + 16 * pieces) * sizeof(float) + 64;
        if (memory.size < bytes) {
            std::free(memory.data);
            memory.data = std::aligned_alloc(64, rounded_up(bytes, 64));
            memory.size = memory.data == nullptr ? 0 : bytes;
            if (memory.data == nullptr) std::abort(); // pool threads cannot report errors
        }
        next_ = static_cast<float*>(memory.data);
    }

    float* take(size_t floats) {
        float* piece = next_;
        next_ += rounded_up(floats, 16);
        return piece;
    }

private:
    struct Memory {
        void* data = nullptr;
        size_t size = 0;
        ~Memory() { std::free(data); }
    };
    float* next_;
};

// Copies `count` rows of `width` elements to a tile with rows of `padded` elements; padding and masked rows are zero.
template <class T>
void copy_rows(float* tile, size_t padded, const T* rows, size_t width, size_t count, const bool* mask) {
    for (size_t row = 0; row < count; ++row) {
        float* to = tile + row * padded;
        size_t filled = mask != nullptr && !mask[row] ? 0 : width;
        size_t k = 0;
        for (; k + kLanes <= filled; k += kLanes) store(to + k, widen(rows + row * width + k));
        for (; k < filled; ++k) to[k] = to_float(rows[row * width + k]);
        for (size_t k = filled; k < padded; ++k) to[k] = 0.0f;
    }
}

// Copies rows to columns: tile[k][row] = scale · rows[row][k]; 0 for masked rows and for rows `count` to `rounded` − 1.
// `rounded` is a multiple of kLanes.
template <class T>
void copy_transposed(float* tile, size_t stride, const T* rows, size_t width, size_t count, size_t rounded,
                     const bool* mask, float scale) {
    size_t whole = width / kLanes * kLanes;
    for (size_t first = 0; first < rounded; first += kLanes) {
        const T* from[kLanes]; // null: a row of zeros
        for (size_t row = 0; row < kLanes; ++row) {
            bool empty = first + row >= count || (mask != nullptr && !mask[first + row]);
            from[row] = empty ? nullptr : rows + (first + row) * width;
        }
        for (size_t k = 0; k < whole; k += kLanes) {
            Vector block[kLanes];
#pragma GCC unroll 16
            for (size_t row = 0; row < kLanes; ++row)
                block[row] = from[row] == nullptr ? Vector{} : widen(from[row] + k) * scale;
            transpose(block);
#pragma GCC unroll 16
            for (size_t column = 0; column < kLanes; ++column) store(tile + (k + column) * stride + first, block[column]);
        }
        for (size_t k = whole; k < width; ++k)
            for (size_t row = 0; row < kLanes; ++row)
                tile[k * stride + first + row] = from[row] == nullptr ? 0.0f : to_float(from[row][k]) * scale;
    }
}

// Converts `count` rows of a tile, `padded` elements each, to T.
template <class T>
void write_rows(T* rows, size_t width, const float* tile, size_t padded, size_t count) {
    for (size_t row = 0; row < count; ++row) {
        const float* from = tile + row * padded;
        if constexpr (std::is_same_v<T, float>)
            std::memcpy(rows + row * width, from, width * sizeof(float));
        else
            for (size_t k = 0; k < width; ++k) from_float(rows[row * width + k], from[k]);
    }
}

inline bool all_true(const bool* mask, size_t count) { return std::memchr(mask, 0, count) == nullptr; }
inline bool none_true(const bool* mask, size_t count) { return std::memchr(mask, 1, count) == nullptr; }

// Returns rows as a float32 tile: the rows themselves if they are float, unpadded and `whole` (unmasked), else a copy.
template <class T>
const float* as_tile(const T* rows, size_t width, size_t padded, size_t count, const bool* mask, bool whole,
                     float* room) {
    if constexpr (std::is_same_v<T, float>)
        if (whole && width == padded) return rows;
    copy_rows(room, padded, rows, width, count, whole ? nullptr : mask);
    return room;
}

// Returns −log L_ii of a key, where `norm` is 1 / sqrt(mean(K²) + eps): 0 if `diagonal` is 0, the training value if 1.
inline float log_row_factor(float norm, float root_d, float epsilon, float diagonal) {
    return diagonal == 0.0f ? 0.0f : diagonal * root_d * epsilon * norm * norm;
}

// norms[row] = 1 / sqrt(mean(K²) + eps), 0 for masked rows.
template <class T>
void key_norms(float* norms, const T* keys, size_t width, size_t count, const bool* mask, float epsilon) {
    for (size_t row = 0; row < count; ++row) {
        norms[row] = 0.0f;
        if (!mask[row]) continue;
        const T* key = keys + row * width;
        Vector squares{};
        size_t k = 0;
        for (; k + kLanes <= width; k += kLanes) {
            Vector value = widen(key + k);
            squares += value * value;
        }
        float total = sum(squares);
        for (; k < width; ++k) total += to_float(key[k]) * to_float(key[k]);
        norms[row] = 1.0f / std::sqrt(total / static_cast<float>(width) + epsilon);
    }
}
