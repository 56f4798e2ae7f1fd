// Kernels for the instruction set "avx512"; its compiler flags stand in CMakeLists.txt.
#define FH_ISA avx512
#define FH_LANES 16
#define FH_ROWS 6
#define FH_VECTORS 4
#include "kernels.inc"
