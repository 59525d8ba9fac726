// Everything that is compiled once for every instruction set; see kernels.h.

#pragma once

#include "batch_norm_kernel.h"
#include "depthwise_kernel.h"
#include "product_kernel.h"
#include "scan_kernel.h"
#include "wavelet_kernel.h"
