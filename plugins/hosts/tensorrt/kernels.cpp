#include "kernels.h"

#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

// The modules of all kernels, one after the other, from a file that the build defines. PTX ends in a zero byte.
asm(".pushsection .rodata\n"
    ".balign 64\n"
    "lucid_kernel_data:\n"
    ".incbin \"" LUCID_KERNEL_DATA "\"\n"
    ".byte 0\n"
    ".popsection\n");
extern "C" __attribute__((visibility("hidden"))) unsigned char const lucid_kernel_data[];

namespace lucid
{
namespace
{

constexpr Kernel kKernels[] = {
#include LUCID_KERNEL_TABLE
};

constexpr int32_t kStaticSharedLimit = 48 * 1024; // bytes; for more, loadFunction raises the kernel's limit

//! Whether `kernel` runs on a device: PTX on its own compute capability and newer ones, machine code on its own and, if
//! that is 8.x, on newer 8.x. Machine code for 9.0 and later runs on that compute capability only.
bool runsOn(Kernel const& kernel, int32_t arch)
{
    if (kernel.isPtx)
    {
        return kernel.arch <= arch;
    }
    return kernel.arch == arch || (kernel.arch / 10 == 8 && arch / 10 == 8 && kernel.arch < arch);
}

CUfunction loadFunction(Kernel const& kernel, Device const& device)
{
    static std::mutex mutex;
    static std::map<std::pair<unsigned long long, Kernel const*>, CUfunction> loaded;
    std::lock_guard<std::mutex> const lock(mutex);
    auto const key = std::make_pair(device.contextId, &kernel);
    auto const found = loaded.find(key);
    if (found != loaded.end())
    {
        return found->second;
    }
    auto const& driver = CudaDriver::get();
    std::string const name = kernel.variant;
    CUmodule module = nullptr;
    CUfunction function = nullptr;
    driver.check(driver.moduleLoadData(&module, lucid_kernel_data + kernel.offset), "loading " + name);
    driver.check(driver.moduleGetFunction(&function, module, kernel.entry), "finding " + name);
    if (kernel.sharedBytes > kStaticSharedLimit)
    {
        driver.check(driver.funcSetAttribute(
                         function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.sharedBytes),
            "reserving shared memory for " + name);
    }
    loaded.emplace(key, function);
    return function;
}

} // namespace

Device Device::current()
{
    auto const& driver = CudaDriver::get();
    CUcontext context = nullptr;
    driver.check(driver.ctxGetCurrent(&context), "asking for the CUDA context");
    if (context == nullptr)
    {
        throw std::runtime_error("the calling thread has no CUDA context");
    }
    Device device{};
    CUdevice handle = 0;
    int major = 0;
    int minor = 0;
    driver.check(driver.ctxGetId(context, &device.contextId), "identifying the CUDA context");
    driver.check(driver.ctxGetDevice(&handle), "asking for the device");
    driver.check(driver.deviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle),
        "asking for the compute capability");
    driver.check(driver.deviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle),
        "asking for the compute capability");
    device.arch = 10 * major + minor;
    return device;
}

Kernel const& findKernel(std::string const& variant, int32_t arch)
{
    Kernel const* best = nullptr;
    for (Kernel const& kernel : kKernels)
    {
        if (!runsOn(kernel, arch) || variant != kernel.variant)
        {
            continue;
        }
        if (best == nullptr || (best->isPtx && !kernel.isPtx) || (best->isPtx == kernel.isPtx && best->arch < kernel.arch))
        {
            best = &kernel;
        }
    }
    if (best == nullptr)
    {
        throw std::runtime_error("the library has no kernel " + variant + " for compute capability "
            + std::to_string(arch / 10) + "." + std::to_string(arch % 10)
            + ": build it for that architecture with lucid-deploy plugin build --arch " + std::to_string(arch));
    }
    return *best;
}

bool hasKernel(std::string const& part, int32_t arch)
{
    for (Kernel const& kernel : kKernels)
    {
        if (runsOn(kernel, arch) && std::strstr(kernel.variant, part.c_str()) != nullptr)
        {
            return true;
        }
    }
    return false;
}

void prepare(std::vector<Step> const& steps, Device const& device)
{
    for (Step const& step : steps)
    {
        loadFunction(*step.kernel, device);
    }
}

void launch(std::vector<Step> const& steps, Device const& device, CUstream stream)
{
    auto const& driver = CudaDriver::get();
    for (Step const& step : steps)
    {
        CUfunction const function = loadFunction(*step.kernel, device);
        std::vector<Argument> arguments = step.arguments;
        arguments.emplace_back(CUdeviceptr{0}); // Triton appends two scratch pointers; these kernels use neither
        arguments.emplace_back(CUdeviceptr{0});
        std::vector<void*> addresses;
        addresses.reserve(arguments.size());
        for (Argument& argument : arguments)
        {
            addresses.push_back(std::visit([](auto& value) -> void* { return &value; }, argument));
        }
        driver.check(driver.launchKernel(function, step.grid[0], step.grid[1], step.grid[2],
                         32U * static_cast<uint32_t>(step.kernel->numWarps), 1, 1,
                         static_cast<uint32_t>(step.kernel->sharedBytes), stream, addresses.data(), nullptr),
            std::string("launching ") + step.kernel->variant);
    }
}

} // namespace lucid
