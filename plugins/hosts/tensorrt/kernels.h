// The compiled kernels that the build embedded, and how they are chosen, loaded and launched.
#pragma once

#include "cuda_driver.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace lucid
{

//! One embedded module with one function. `arch` is 90 for compute capability 9.0.
struct Kernel
{
    char const* variant;
    int32_t arch;
    bool isPtx; //!< for the driver to compile; runs on `arch` and everything newer
    char const* entry;
    int32_t sharedBytes;
    int32_t numWarps;
    int32_t blockM; //!< 0 where the kernel has none
    int32_t blockN;
    bool int8; //!< whether the solve multiplies what bfloat16 leaves of E in bytes
    size_t offset; //!< of the module in the embedded data
};

//! Where a launch finds a kernel: the context it runs in and the device's compute capability.
struct Device
{
    unsigned long long contextId;
    int32_t arch;

    //! The calling thread's current context. Throws std::runtime_error when there is none.
    static Device current();
};

//! Returns the best form of `variant` for a device: its own machine code, that of an older chip of the 8.x family, or
//! PTX. Throws std::runtime_error when the library has none.
Kernel const& findKernel(std::string const& variant, int32_t arch);

//! Whether a device can run some kernel with `part` in its variant's name, such as "_float16_d64_u".
bool hasKernel(std::string const& part, int32_t arch);

using Argument = std::variant<CUdeviceptr, int32_t, float>;

//! One kernel launch; the same numbers as a Step of plan.py.
struct Step
{
    Kernel const* kernel;
    std::array<uint32_t, 3> grid;
    std::vector<Argument> arguments;
};

//! Loads the modules of `steps` into the context, once for each context.
void prepare(std::vector<Step> const& steps, Device const& device);

//! Launches in order. Throws std::runtime_error when the driver refuses.
void launch(std::vector<Step> const& steps, Device const& device, CUstream stream);

} // namespace lucid
