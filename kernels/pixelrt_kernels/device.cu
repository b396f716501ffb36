// All kernels, for one fat binary. Compiled by build.py with the options in device.flags.
#include <cuda_fp16.h>

#define PRT_KERNELS
#define PRT_HD static __host__ __device__ __forceinline__
#define PRT_FMA(a, b, c) fmaf(a, b, c)
#define PRT_DYNAMIC_SHARED(type, name) extern __shared__ type name[]

#include "upsample_mask/kernel.cuh"
#include "upsample_mask/gpu.cuh"
#include "fuse_scales/kernel.cuh"
#include "deform_attn/kernel.cuh"
