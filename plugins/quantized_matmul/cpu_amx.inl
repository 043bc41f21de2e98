// The products of quantized_matmul with AMX, whose instructions multiply a tile of up to 16 rows of X, 64 numbers each, by
// the 16 columns of a panel. The sums of a block are the same integers as VNNI's and are added in the same order.

constexpr size_t kTileRows = 16;
constexpr size_t kTileRun = 64;     // most numbers of a row in a tile
constexpr size_t kSumsAtOnce = 8;   // blocks whose sums are in scratch memory, which stays in the nearest cache
constexpr size_t kTileSums = kSumsAtOnce * kTileRows * kInPanel;

#if LUCID_LANES == 16
// Whether the processor has tiles of int8 and Linux lets this process use them.
inline bool has_tiles() {
    static const bool has = [] {
        constexpr unsigned tiles = 1u << 24 | 1u << 25;  // AMX-TILE and AMX-INT8, in EDX of leaf 7
        constexpr long request = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        unsigned a, b, c, d;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tiles) != tiles) return false;
        return syscall(SYS_arch_prctl, request, tile_data) == 0;
    }();
    return has;
}

// Writes the numbers of a panel of 4 bits as bytes: of each vector the lower halves, then the upper ones.
inline void unpack_panel(uint8_t* to, const uint8_t* panel, const QuantizedWeight& w) {
    const __m512i low = _mm512_set1_epi8(15);
    const PanelSizes sizes(w);
    for (size_t b = 0; b < w.blocks; ++b, panel += sizes.block)
        for (size_t at = 0; at < sizes.numbers; at += kLine, to += 2 * kLine) {
            __m512i numbers = _mm512_loadu_si512(panel + at);
            _mm512_storeu_si512(to, _mm512_and_si512(numbers, low));
            _mm512_storeu_si512(to + kLine, _mm512_and_si512(_mm512_srli_epi16(numbers, 4), low));
        }
}

// sums[b][r][c] = Σ_k x[b][r][k] · numbers[b][k][c] for `count` blocks of `runs` runs, `stride` bytes of numbers apart.
// GCC does not know that loads of tiles and of their shapes read memory: the empty asm makes it write before.
__attribute__((target("amx-tile,amx-int8"))) inline void sum_blocks(int32_t* sums, const int8_t* x, const uint8_t* numbers,
                                                                    size_t stride, size_t count, size_t rows, size_t runs,
                                                                    size_t run) {
    struct {
        uint8_t palette[16];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {{1}, {kLine, static_cast<uint16_t>(run), kLine}, {uint8_t(rows), uint8_t(rows), uint8_t(run / 4)}};
    asm volatile("" ::"r"(&shape) : "memory");
    _tile_loadconfig(&shape); // tile 0: sums, tile 1: X, tile 2: numbers of the panel
    for (size_t b = 0; b < count; ++b, sums += rows * kInPanel, numbers += stride) {
        const uint8_t* from = numbers;
        _tile_zero(0);
        for (size_t i = 0; i < runs; ++i, x += rows * run, from += run * kInPanel) {
            _tile_loadd(1, x, run);
            _tile_loadd(2, from, kLine);
            _tile_dpbsud(0, 1, 2);
        }
        _tile_stored(0, sums, kLine);
    }
    _tile_release(); // a thread whose tiles are in use is slow to switch to
}

// total[r][c] += what multiply_panel adds for some blocks, of which a panel begins with the first, for R rows of a group.
template <size_t Bits, class S, int R>
void add_sums(float* total, const int32_t* sums, const uint8_t* panel, size_t at, size_t count, size_t rows,
              const Group& group, const QuantizedWeight& w) {
    const PanelSizes sizes(w);
    __m512 result[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) result[r] = _mm512_loadu_ps(total + r * kInPanel);
    for (size_t b = 0; b < count; ++b, at += rows, panel += sizes.block, sums += rows * kInPanel) {
        __m512i dot[R];
        start_sums<Bits, R>(dot, group.sums + at, w.zero_points != nullptr ? panel + sizes.block - kInPanel : nullptr);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) dot[r] = _mm512_add_epi32(dot[r], _mm512_loadu_si512(sums + r * kInPanel));
        add_block<S, R>(result, dot, reinterpret_cast<const S*>(panel + sizes.numbers), group, at, w);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(total + r * kInPanel, result[r]);
}

// Computes the same as multiply_panel, for a group of up to 16 rows in runs. Numbers are those of the panel, as bytes.
template <size_t Bits, class S>
void multiply_tiles(size_t rows, float* total, int32_t* sums, const uint8_t* numbers, const uint8_t* panel,
                    const Group& group, const QuantizedWeight& w, size_t run) {
    const size_t block = w.block_bytes * 8 / Bits, size = PanelSizes(w).block, stride = Bits == 4 ? block * kInPanel : size;
    std::fill(total, total + rows * kInPanel, 0.0f);
    for (size_t first = 0; first < w.blocks; first += kSumsAtOnce, panel += kSumsAtOnce * size) {
        size_t count = std::min(kSumsAtOnce, w.blocks - first), row = 0;
        sum_blocks(sums, group.numbers + first * block * rows, numbers + first * stride, stride, count, rows, block / run, run);
        for (; row + 4 <= rows; row += 4)
            add_sums<Bits, S, 4>(total + row * kInPanel, sums + row * kInPanel, panel, first * rows + row, count, rows, group, w);
        for (; row < rows; ++row)
            add_sums<Bits, S, 1>(total + row * kInPanel, sums + row * kInPanel, panel, first * rows + row, count, rows, group, w);
    }
}
#else
inline bool has_tiles() { return false; }
inline void unpack_panel(uint8_t*, const uint8_t*, const QuantizedWeight&) {}

template <size_t Bits, class S>
void multiply_tiles(size_t, float*, int32_t*, const uint8_t*, const uint8_t*, const Group&, const QuantizedWeight&, size_t) {}
#endif
