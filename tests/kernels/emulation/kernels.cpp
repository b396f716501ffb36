// The kernels as C functions: emulate(name, grid and block (6,), shared, arguments) runs one. Returns 1 for an unknown name.
#include "cuda.h"

#include <string>
#include <tuple>
#include <utility>

#define PRT_KERNELS
#define PRT_HD static inline
#define PRT_FMA(a, b, c) std::fmaf(a, b, c)
#define PRT_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::dynamic_shared)
#define memcpy std::memcpy

#include "upsample_mask/kernel.cuh"
#include "upsample_mask/gpu.cuh"
#include "fuse_scales/kernel.cuh"
#include "deform_attn/kernel.cuh"

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

template <class... A>
static void launch(void (*kernel)(A...), const unsigned* sizes, int shared, void** arguments) {
  emulation::run({sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]}, shared,
                 [=] { call(kernel, arguments, std::index_sequence_for<A...>()); });
}

extern "C" int emulate(const char* name, const unsigned* sizes, int shared, void** arguments) {
  const std::string wanted = name;
#define PRT_KERNEL(kernel) \
  if (wanted == #kernel) return launch(kernel, sizes, shared, arguments), 0;
  PRT_KERNEL(pixelrt_upsample_mask)
  PRT_KERNEL(pixelrt_mask_scores)
  PRT_KERNEL(pixelrt_label_map)
  PRT_KERNEL(pixelrt_fuse_scales_f32x4)
  PRT_KERNEL(pixelrt_fuse_scales_f32x1)
  PRT_KERNEL(pixelrt_fuse_scales_f16x8)
  PRT_KERNEL(pixelrt_fuse_scales_f16x1)
  PRT_KERNEL(pixelrt_combine_scales)
  PRT_KERNEL(pixelrt_deform_attn_f32x4)
  PRT_KERNEL(pixelrt_deform_attn_f32x1)
  PRT_KERNEL(pixelrt_deform_attn_f16x8)
  PRT_KERNEL(pixelrt_deform_attn_f16x1)
  return 1;
}
