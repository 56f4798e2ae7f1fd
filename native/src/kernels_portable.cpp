// Kernels for the instruction set "portable"; its compiler flags stand in CMakeLists.txt.
#define FH_ISA portable
#define FH_LANES 4
#define FH_ROWS 4
#define FH_VECTORS 2
#include "kernels.inc"
