// Messages to TensorRT's logger, or to stderr if TensorRT has provided none or one of an unknown class.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace lucid
{

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! Logs at error severity, with the library's name in front.
void logError(std::string const& message) noexcept;

//! Runs `body` and returns its result; an exception is logged and becomes `failure`. TensorRT's interfaces are noexcept.
template <typename Body, typename Result>
Result guarded(Result failure, Body&& body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        logError(error.what());
    }
    catch (...)
    {
        logError("unknown exception");
    }
    return failure;
}

} // namespace lucid
