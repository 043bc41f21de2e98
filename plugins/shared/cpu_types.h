// Types of the CPU kernels' arguments, independent of onnxruntime.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lucid {

// A float16 number in memory; all arithmetic is in float32.
struct Half {
    uint16_t bits;
};

// The caller's thread pool: run calls task(data, 0) … task(data, count - 1), in any order, and waits for all of them.
class Pool {
public:
    virtual ~Pool() = default;
    virtual void run(void (*task)(void* data, size_t index), size_t count, void* data) const = 0;
};

} // namespace lucid
