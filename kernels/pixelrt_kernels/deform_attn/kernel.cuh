// Multi-scale deformable attention's sampling and sum, one sample at a time; see reference.py.

struct Sample {
  int base;        // position of the upper left corner in the value's N; may lie outside
  float share[4];  // weight of the corners (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1); 0 outside of the map
};

// A level of h x w positions that begin at `start`; x, y 0..1 across it. A corner with share 0 must not be read.
PRT_HD Sample sample_of(float x, float y, float weight, int h, int w, int start) {
  x = x * (float)w - 0.5f;
  y = y * (float)h - 0.5f;
  if (!(x > -1.0f && x < (float)w && y > -1.0f && y < (float)h)) return {start, {0.0f, 0.0f, 0.0f, 0.0f}};
  int left = (int)x, top = (int)y;
  left -= x < (float)left, top -= y < (float)top;  // floor
  const float tx = x - (float)left, ty = y - (float)top;
  const float upper = top >= 0 ? (1.0f - ty) * weight : 0.0f, lower = top + 1 < h ? ty * weight : 0.0f;
  const float at_left = left >= 0 ? 1.0f - tx : 0.0f, at_right = left + 1 < w ? tx : 0.0f;
  return {start + top * w + left, {upper * at_left, upper * at_right, lower * at_left, lower * at_right}};
}

#if defined(PRT_KERNELS)
// Kernel. A block takes PAIRS neighbouring queries of one head. First its threads place the samples, one each, into
// shared memory: 24 bytes that all channels use. Then d / W threads per query walk over the samples, W channels each
// by one 16-byte load a corner, and sum in float32. Bound by gathering: the samples of neighbouring queries lie close
// together, so most corners come from the nearest cache.

// value (B, N, M, d), levels (L, 3) of h, w, start, locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P), out
// (B, Q, M, d). threads: of one query. chunk: samples held at a time. Grid: blocks over Q, M, B.
// Shared memory: (blockDim.x / threads) * chunk * 24 bytes.
template <class T, int W>
static __device__ __forceinline__ void deform_attn(const T* __restrict__ value, const int* __restrict__ levels,
                                                   const float* __restrict__ locations, const T* __restrict__ weights,
                                                   int positions, int queries, int width, int level_count, int points,
                                                   int threads, int chunk, T* __restrict__ out) {
  PRT_DYNAMIC_SHARED(float4, shares);
  const int pairs = blockDim.x / threads, samples = level_count * points, heads = gridDim.y;
  int2* places = reinterpret_cast<int2*>(shares + pairs * chunk);  // first corner's position, positions a row
  const int head = blockIdx.y, first = blockIdx.x * pairs, mine = threadIdx.x / threads;
  const int stride = heads * width, channel = (threadIdx.x % threads) * W;
  const bool works = mine < pairs && first + mine < queries && channel < width;
  const T* map = value + ((size_t)blockIdx.z * positions * heads + head) * width + channel;
  float sum[W];
#pragma unroll
  for (int c = 0; c < W; ++c) sum[c] = 0.0f;
  for (int from = 0; from < samples; from += chunk) {
    const int count = min(chunk, samples - from);
    for (int i = threadIdx.x; i < pairs * count; i += blockDim.x) {
      const int pair = i / count, s = from + i % count, query = first + pair;
      if (query >= queries) break;
      const int* level = levels + s / points * 3;
      const size_t at = (((size_t)blockIdx.z * queries + query) * heads + head) * samples + s;
      const float2 place = __ldg(reinterpret_cast<const float2*>(locations) + at);
      float weight;
      Pack<T, 1>::load(weights + at, &weight);
      const int w = __ldg(level + 1);
      const Sample sample = sample_of(place.x, place.y, weight, __ldg(level), w, __ldg(level + 2));
      shares[pair * chunk + i % count] =
          make_float4(sample.share[0], sample.share[1], sample.share[2], sample.share[3]);
      places[pair * chunk + i % count] = make_int2(sample.base, w);
    }
    __syncthreads();
    if (works) {
#pragma unroll 2
      for (int s = 0; s < count; ++s) {
        const float4 share = shares[mine * chunk + s];
        const int2 place = places[mine * chunk + s];
        const float corner_share[4] = {share.x, share.y, share.z, share.w};
        float v[4][W];
#pragma unroll
        for (int k = 0; k < 4; ++k) {  // all loads before their first use
          const int position = place.x + (k & 1) + (k >> 1) * place.y;
          if (corner_share[k] != 0.0f) {
            Pack<T, W>::load(map + (ptrdiff_t)position * stride, v[k]);
          } else {
#pragma unroll
            for (int c = 0; c < W; ++c) v[k][c] = 0.0f;
          }
        }
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int c = 0; c < W; ++c) sum[c] = fmaf(corner_share[k], v[k][c], sum[c]);
      }
    }
    __syncthreads();
  }
  if (works)
    Pack<T, W>::store(out + (((size_t)blockIdx.z * queries + first + mine) * heads + head) * width + channel, sum);
}

#define PRT_DEFORM(name, T, W)                                                                                         \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      name(const T* __restrict__ value, const int* __restrict__ levels, const float* __restrict__ locations,           \
           const T* __restrict__ weights, int positions, int queries, int width, int level_count, int points,          \
           int threads, int chunk, T* __restrict__ out) {                                                              \
    deform_attn<T, W>(value, levels, locations, weights, positions, queries, width, level_count, points, threads,      \
                      chunk, out);                                                                                     \
  }
PRT_DEFORM(pixelrt_deform_attn_f32x4, float, 4)
PRT_DEFORM(pixelrt_deform_attn_f32x1, float, 1)
PRT_DEFORM(pixelrt_deform_attn_f16x8, __half, 8)
PRT_DEFORM(pixelrt_deform_attn_f16x1, __half, 1)
#endif  // PRT_KERNELS
