// The kernels for every processor of the architecture, sized for 16 registers of 4 floats.
#include "standard.h"
#define LUCID_LANES 4
#define LUCID_PANEL_VECTORS 3
#define LUCID_PANEL_COLUMNS 4
#define LUCID_ROW_COLUMNS 2
#define LUCID_GROUP_VECTORS 2
#define LUCID_HAS_F16C 0
#define LUCID_TABLE kPortable
#define LUCID_NAME "portable"
#define LUCID_SUPPORTED true
#include "kernels.inl"
