// All standard headers of the kernels. They are included before a file selects its instruction set: code that the linker
// shares between files must run on every processor.
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
