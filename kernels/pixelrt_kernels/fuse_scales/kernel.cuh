// fuse_scales and combine_scales, one element at a time; see reference.py. Needs upsample_mask/kernel.cuh before it.

PRT_HD float fused(float focus, float feature, float dense) { return focus * feature + dense; }

// weight * bilinear(plane (h, w) to height x width)[y, x], given the taps of y and x.
PRT_HD float resized(const float* plane, int h, int w, const Tap& row, const Tap& column) {
  const float* upper = plane + (size_t)row.low * w;
  const float* lower = row.low + 1 < h ? upper + w : upper;
  const int left = column.low, right = left + 1 < w ? left + 1 : w - 1;
  return mix(mix(upper[left], upper[right], column.keep, column.t), mix(lower[left], lower[right], column.keep, column.t),
             row.keep, row.t);
}

#if defined(PRT_KERNELS)
// Kernels. Bound by memory: features are read once for all targets, by 16 bytes; each result is written once, by 16.

// W values of 16 bytes (or one value) to and from float32.
template <class T, int W>
struct Pack;

template <>
struct Pack<float, 4> {
  static __device__ __forceinline__ void load(const float* from, float* v) {
    const float4 all = __ldg(reinterpret_cast<const float4*>(from));
    v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
  }
  static __device__ __forceinline__ void store(float* to, const float* v) {
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
  }
};

template <>
struct Pack<float, 1> {
  static __device__ __forceinline__ void load(const float* from, float* v) { v[0] = __ldg(from); }
  static __device__ __forceinline__ void store(float* to, const float* v) { to[0] = v[0]; }
};

template <>
struct Pack<__half, 8> {
  static __device__ __forceinline__ void load(const __half* from, float* v) {
    const uint4 all = __ldg(reinterpret_cast<const uint4*>(from));
    const unsigned words[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      __half2 two;
      memcpy(&two, &words[i], 4);
      const float2 pair = __half22float2(two);
      v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
    }
  }
  static __device__ __forceinline__ void store(__half* to, const float* v) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 two = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
      memcpy(&words[i], &two, 4);
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  }
};

template <>
struct Pack<__half, 1> {
  static __device__ __forceinline__ void load(const __half* from, float* v) { v[0] = __half2float(*from); }
  static __device__ __forceinline__ void store(__half* to, const float* v) { to[0] = __float2half_rn(v[0]); }
};

// out (N, P, C); C is a multiple of W, P * C below 2^31. Grid: blocks over P * C / W; block 256.
template <class T, int W>
static __device__ __forceinline__ void fuse_scales(const float* __restrict__ previous, const T* __restrict__ features,
                                                   const T* __restrict__ dense, int targets, int positions,
                                                   int channels, T* __restrict__ out) {
  const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * W, all = (unsigned)positions * channels;
  if (i >= all) return;
  const unsigned position = i / channels, channel = i % channels;
  float feature[W], add[W], result[W];
  Pack<T, W>::load(features + i, feature);
  Pack<T, W>::load(dense + channel, add);
#pragma unroll 4
  for (int n = 0; n < targets; ++n) {
    // The fast exponential: its error, 1e-6 of the result at most, is that of one more float32 rounding or two.
    const float focus = __fdividef(1.0f, 1.0f + __expf(-__ldg(previous + (size_t)n * positions + position))) + 1.0f;
#pragma unroll
    for (int c = 0; c < W; ++c) result[c] = fused(focus, feature[c], add[c]);
    Pack<T, W>::store(out + (size_t)n * all + i, result);
  }
}

#define PRT_FUSE(name, T, W)                                                                                       \
  extern "C" __global__ void __launch_bounds__(256)                                                                \
      name(const float* __restrict__ previous, const T* __restrict__ features, const T* __restrict__ dense,        \
           int targets, int positions, int channels, T* __restrict__ out) {                                        \
    fuse_scales<T, W>(previous, features, dense, targets, positions, channels, out);                               \
  }
PRT_FUSE(pixelrt_fuse_scales_f32x4, float, 4)
PRT_FUSE(pixelrt_fuse_scales_f32x1, float, 1)
PRT_FUSE(pixelrt_fuse_scales_f16x8, __half, 8)
PRT_FUSE(pixelrt_fuse_scales_f16x1, __half, 1)

// out (N, height, width) += weight * bilinear(scale (N, h, w)), or = where `first`. Called scale after scale.
// Grid: blocks over width, height, N; block 128.
extern "C" __global__ void __launch_bounds__(128)
    pixelrt_combine_scales(const float* __restrict__ scale, int h, int w, int height, int width, float weight,
                           int first, float* __restrict__ out) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= width) return;
  const Tap row = tap_of(y, h, height), column = tap_of(x, w, width);
  const float value = weight * resized(scale + (size_t)blockIdx.z * h * w, h, w, row, column);
  float* at = out + ((size_t)blockIdx.z * height + y) * width + x;
  *at = first ? value : *at + value;
}
#endif  // PRT_KERNELS
