// Kernels for the instruction set "avx512"; its compiler flags stand in CMakeLists.txt.
#define FH_ISA avx512
#define FH_LANES 16
#define FH_ROWS 6
#define FH_VECTORS 4
#define FH_BF16 0
#define FH_VNNI 0
#include "kernels.inc"
