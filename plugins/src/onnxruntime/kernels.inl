// All kernels for one instruction set. The file that includes this has set LUCID_*; everything but the table is local.
namespace lucid {
namespace {
#include "vectors.inl"
#include "products.inl"
#include "tiles.inl"

#include "precondition.inl"

#include "attention.inl"

#include "rows.inl"

#include "decode.inl"
} // namespace

const Kernels LUCID_TABLE = {
    LUCID_NAME,
    [] { return static_cast<bool>(LUCID_SUPPORTED); },
    {precondition<float>, attention<float>, decode<float, float>, decode<float, Half>, decode<float, int8_t>},
    {precondition<Half>, attention<Half>, decode<Half, Half>, decode<Half, Half>, decode<Half, int8_t>},
};
} // namespace lucid
