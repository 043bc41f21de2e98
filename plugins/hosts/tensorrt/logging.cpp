#include "logging.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <cxxabi.h>
#include <dlfcn.h>
#include <typeinfo>

using nvinfer1::ILogger;

namespace lucid
{

//! ILogger as TensorRT-RTX 1.7 declares it: a versioned interface. TensorRT 10's headers, against which this library is
//! compiled, have log() as the first virtual function, so calling it on such an object would call another function.
//! Not in an unnamed namespace, where the compiler would conclude from the lack of derived classes that log() is never
//! implemented.
class VersionedLogger : public nvinfer1::IVersionedInterface
{
public:
    virtual void log(ILogger::Severity severity, char const* message) noexcept = 0;
};

namespace
{

using GetLogger = ILogger* (*) ();

std::atomic<GetLogger> gGetLogger{nullptr};

constexpr char const* kVersionedLoggerName = "N8nvinfer15v_1_07ILoggerE";

//! Whether a class is, or derives from, the one of the given mangled name.
bool derivesFrom(std::type_info const& type, char const* name)
{
    if (std::strcmp(type.name(), name) == 0)
    {
        return true;
    }
    auto const* const single = dynamic_cast<abi::__si_class_type_info const*>(&type);
    return single != nullptr && derivesFrom(*single->__base_type, name);
}

//! Logs through TensorRT's logger; false if there is none or its class is unknown.
bool logToTensorRT(char const* line)
{
    auto const getLogger = gGetLogger.load();
    ILogger* const logger = getLogger != nullptr ? getLogger() : nullptr;
    if (logger == nullptr)
    {
        return false;
    }
    std::type_info const& type = typeid(*logger);
    if (derivesFrom(type, typeid(ILogger).name()))
    {
        logger->log(ILogger::Severity::kERROR, line);
        return true;
    }
    if (derivesFrom(type, kVersionedLoggerName))
    {
        reinterpret_cast<VersionedLogger*>(logger)->log(ILogger::Severity::kERROR, line);
        return true;
    }
    return false;
}

} // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    // The finder's class has changed in the same way, so it cannot be called either. The address of its virtual table
    // identifies its library, whose getLogger() is the same in all versions.
    Dl_info info{};
    if (finder == nullptr || dladdr(*reinterpret_cast<void**>(finder), &info) == 0)
    {
        return;
    }
    void* const library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    gGetLogger.store(reinterpret_cast<GetLogger>(dlsym(library != nullptr ? library : RTLD_DEFAULT, "getLogger")));
}

void logError(std::string const& message) noexcept
{
    char line[1024];
    std::snprintf(line, sizeof line, "lucid plugin: %s", message.c_str());
    if (!logToTensorRT(line))
    {
        std::fprintf(stderr, "%s\n", line);
    }
}

} // namespace lucid
