// Kernels for the instruction set "avx2"; its compiler flags stand in CMakeLists.txt.
#define FH_ISA avx2
#define FH_LANES 8
#define FH_ROWS 4
#define FH_VECTORS 2
#include "kernels.inc"
