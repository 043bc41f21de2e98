// The kernels with AVX-512: 32 registers of 16 floats.
#if defined(__x86_64__)
#include "standard.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#include <immintrin.h>
#define LUCID_LANES 16
#define LUCID_PANEL_VECTORS 3
#define LUCID_PANEL_COLUMNS 8
#define LUCID_ROW_COLUMNS 4
#define LUCID_GROUP_VECTORS 4
#define LUCID_HAS_F16C 1
#define LUCID_TABLE kAvx512
#define LUCID_NAME "avx512"
#define LUCID_SUPPORTED                                                                                             \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && \
     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&         \
     __builtin_cpu_supports("f16c"))
#include "kernels.inl"
#endif
