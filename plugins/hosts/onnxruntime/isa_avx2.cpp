// The kernels with AVX2, FMA and F16C: 16 registers of 8 floats.
#if defined(__x86_64__)
#include "standard.h"
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#define LUCID_LANES 8
#define LUCID_PANEL_VECTORS 3
#define LUCID_PANEL_COLUMNS 4
#define LUCID_ROW_COLUMNS 2
#define LUCID_GROUP_VECTORS 2
#define LUCID_HAS_F16C 1
#define LUCID_TABLE kAvx2
#define LUCID_NAME "avx2"
#define LUCID_SUPPORTED \
    (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
#include "kernels.inl"
#endif
