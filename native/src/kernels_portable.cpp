// Kernels for the instruction set "portable"; its compiler flags stand in CMakeLists.txt.
#define FH_ISA portable
#define FH_LANES 4
#define FH_ROWS 4
#define FH_VECTORS 2
#define FH_BF16 0
#define FH_VNNI 0
#include "kernels.inc"
