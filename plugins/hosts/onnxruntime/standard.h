// Everything the kernels take from the standard library. It comes before a file switches its instruction set: code that
// several files share must not be compiled for a processor that may not be there.
#pragma once

#include "kernels.h"
#include "shared/cpu_half.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
