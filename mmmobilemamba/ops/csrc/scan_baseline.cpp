// The scan for the instruction set that the compiler assumes by default.

#define SCAN_VECTOR_WIDTH 4
#include "scan_kernel.h"

const Kernels kBaselineKernels = kKernels;
