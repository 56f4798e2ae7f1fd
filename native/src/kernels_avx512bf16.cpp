// Kernels for the instruction set "avx512bf16"; its compiler flags stand in CMakeLists.txt.
#define FH_ISA avx512bf16
#define FH_LANES 16
#define FH_ROWS 6
#define FH_VECTORS 4
#define FH_BF16 1
#define FH_VNNI 1
#include "kernels.inc"
