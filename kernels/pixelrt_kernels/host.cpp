// The host library: the kernels' bodies in loops over rows, on threads, for the best instruction set at hand.
//
// C interface, called by library.py. Every function returns 0, or 1 when memory ran out. Arguments are checked there.
// Compiled by build.py with the options in host.flags.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "half.h"
#include "upsample_mask/stream.h"

namespace pixelrt {

// Values are stored in float32 or float16: `half` says which.
struct FuseCall {
  const float* previous;  // (N, P)
  const void *features, *dense;  // (P, C), (C,)
  int64_t targets, positions, channels;
  bool half;
  void* out;  // (N, P, C)
};

struct CombineCall {
  const float* const* scales;  // (N, h_l, w_l) each
  const int32_t* sizes;        // (L, 2)
  const float* weights;        // (L,)
  int levels, height, width;
  float* out;  // (N, height, width)
};

struct DeformCall {
  const void* value;       // (B, N, M, d)
  const int32_t* levels;   // (L, 3): h, w, start
  const float* locations;  // (B, Q, M, L, P, 2)
  const void* weights;     // (B, Q, M, L, P)
  int64_t positions, queries, heads, width, level_count, points;
  bool half;
  void* out;  // (B, Q, M, d)
};

struct Level {
  Part (*mask_part)(const MaskCall&, int, int, Stream&);
  void (*label_part)(const LabelCall&, int, Stream&, LabelScratch&);
  void (*resize_plane)(const ResizeCall&, int64_t, std::vector<float>*);
  void (*fuse_position)(const FuseCall&, int64_t, float*);
  void (*combine_row)(const CombineCall&, int64_t);
  void (*deform_query)(const DeformCall&, int64_t, float*);
};

struct Reversal {
  uint8_t of[256];
  constexpr Reversal() : of() {
    for (int i = 0; i < 256; ++i)
      for (int bit = 0; bit < 8; ++bit) of[i] |= (uint8_t)(((i >> bit) & 1) << (7 - bit));
  }
  constexpr uint8_t operator[](unsigned i) const { return of[i]; }
};
static constexpr Reversal REVERSED{};  // bits of a byte, last first: the first pixel is the highest bit

namespace baseline {
#if defined(__aarch64__)
#define PRT_FMA(a, b, c) __builtin_fmaf(a, b, c)
#else  // no such instruction: the product is exact in double; the sum is rounded there and then once more
#define PRT_FMA(a, b, c) ((float)((double)(a) * (double)(b) + (double)(c)))
#endif
#define PRT_LANES 4
#include "level.inc"
}  // namespace baseline

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,popcnt")
#endif
namespace avx2 {
#define PRT_FMA(a, b, c) __builtin_fmaf(a, b, c)
#define PRT_LANES 8
#include "level.inc"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,popcnt,prefer-vector-width=512")
#endif
namespace avx512 {
#define PRT_FMA(a, b, c) __builtin_fmaf(a, b, c)
#define PRT_LANES 16
#include "level.inc"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// Instruction sets of this machine, the best one last.
static int best_level() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? 2 : 1;
#else
  return 0;
#endif
}

static const Level& level_of(int64_t level) {
#if defined(__x86_64__)
  if (level == 2) return avx512::LEVEL;
  if (level == 1) return avx2::LEVEL;
#endif
  (void)level;
  return baseline::LEVEL;
}

static int lanes_of(int64_t level) { return level == 2 ? 16 : level == 1 ? 8 : 4; }

static Axis axis_of(int n_in, int n_out, int kept, int lanes) {
  Axis axis;
  axis.n_in = n_in, axis.n_out = kept, axis.padded = rounded_up(kept + 1);
  axis.low.resize(axis.padded), axis.lane.resize(axis.padded);
  axis.keep.resize(axis.padded), axis.t.resize(axis.padded);
  axis.near = lanes > 4;
  for (int i = 0; i < axis.padded; ++i) {
    const baseline::Tap tap = baseline::tap_of(std::min(i, kept - 1), n_in, n_out);
    axis.low[i] = tap.low, axis.keep[i] = tap.keep, axis.t[i] = tap.t;
    axis.lane[i] = tap.low - axis.low[i / lanes * lanes];
    axis.near = axis.near && axis.lane[i] < lanes;
  }
  return axis;
}

// sizes: h, w, S, h', w', H, W
static Chain chain_of(const int32_t* sizes, int64_t level) {
  const int lanes = lanes_of(level);
  return {axis_of(sizes[0], sizes[2], sizes[3], lanes), axis_of(sizes[1], sizes[2], sizes[4], lanes),
          axis_of(sizes[3], sizes[5], sizes[5], lanes), axis_of(sizes[4], sizes[6], sizes[6], lanes)};
}

// Calls work(next) on each thread, where next() gives the items 0, 1, ... and then -1. Returns 0, or 1 if any failed.
template <class Work>
static int on_threads(int64_t items, int64_t threads, Work work) {
  std::atomic<int64_t> counter{0};
  std::atomic<int> failed{0};
  const auto run = [&] {
    try {
      work([&]() -> int64_t {
        const int64_t item = counter.fetch_add(1);
        return item < items ? item : -1;
      });
    } catch (const std::exception&) {
      failed = 1;
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min(threads, items); ++i) others.emplace_back(run);
  } catch (const std::exception&) {
    // fewer threads than asked for: those that there are do the work
  }
  run();
  for (std::thread& other : others) other.join();
  return failed;
}

}  // namespace pixelrt

using namespace pixelrt;

#define PRT_API extern "C" __attribute__((visibility("default")))

PRT_API const char* pixelrt_source_hash() { return PIXELRT_SOURCE_HASH; }

PRT_API int pixelrt_best_level() { return best_level(); }

// scores (N,), boxes (N, 4); bits (N, H, ceil(W / 8)) or bytes (N, H, W), the other null. sizes: see chain_of.
PRT_API int pixelrt_upsample_mask(const float* low_res, int64_t count, const int32_t* sizes, int64_t level,
                                  int64_t threads, uint8_t* bits, uint8_t* bytes, float* scores, int32_t* boxes) try {
  const Chain chain = chain_of(sizes, level);
  const Level& loops = level_of(level);
  const MaskCall call = {&chain, low_res, bits, bytes};
  const int64_t parts = (sizes[5] + PART_ROWS - 1) / PART_ROWS;
  std::vector<Part> found((size_t)(count * parts));
  const int failed = on_threads(count * parts, threads, [&](auto next) {
    Stream stream(chain);
    for (int64_t item; (item = next()) >= 0;)
      found[(size_t)item] = loops.mask_part(call, (int)(item / parts), (int)(item % parts), stream);
  });
  for (int64_t n = 0; n < count && !failed; ++n) {
    Part all;  // in the order of the rows, whatever thread made them
    for (int64_t i = n * parts; i < (n + 1) * parts; ++i) {
      const Part& part = found[(size_t)i];
      if (!part.area) continue;
      all.x0 = all.area ? std::min(all.x0, part.x0) : part.x0;
      all.y0 = all.area ? all.y0 : part.y0;
      all.x1 = std::max(all.x1, part.x1), all.y1 = part.y1;
      all.sum += part.sum, all.area += part.area;
    }
    scores[n] = (float)(all.sum / ((double)all.area + 1e-6));
    const int32_t box[4] = {all.x0, all.y0, all.x1, all.y1};
    std::copy(box, box + 4, boxes + 4 * n);
  }
  return failed;
} catch (const std::exception&) {
  return 1;
}

// owner (H, W); won, whole, kept (count,), zeros on entry.
PRT_API int pixelrt_label_map(const float* low_res, const float* scores, int64_t count, const int32_t* sizes,
                              int64_t level, int64_t threads, int16_t* owner, int64_t* won, int64_t* whole, int64_t* kept) try {
  const Chain chain = chain_of(sizes, level);
  const Level& loops = level_of(level);
  const LabelCall call = {&chain, low_res, scores, (int)count, owner};
  std::mutex adding;
  return on_threads((sizes[5] + LABEL_ROWS - 1) / LABEL_ROWS, threads, [&](auto next) {
    Stream stream(chain);
    LabelScratch scratch(chain.original_columns.padded, (int)count);
    for (int64_t item; (item = next()) >= 0;) loops.label_part(call, (int)item, stream, scratch);
    const std::lock_guard<std::mutex> lock(adding);
    for (int64_t n = 0; n < count; ++n) {
      won[n] += scratch.won[n], whole[n] += scratch.whole[n], kept[n] += scratch.kept[n];
    }
  });
} catch (const std::exception&) {
  return 1;
}

// planes (K, held, w), out (K, to - from, kept). sizes: rows held and the first of them; h of all rows, H of the
// result, from, to; w, W of the result, of which the first `kept` are wanted.
PRT_API int pixelrt_resize_rows(const float* planes, int64_t count, const int32_t* sizes, int64_t probabilities,
                                int64_t level, int64_t threads, float* out) try {
  const int lanes = lanes_of(level);
  const Axis rows = axis_of(sizes[2], sizes[3], sizes[3], lanes), columns = axis_of(sizes[6], sizes[7], sizes[8], lanes);
  const ResizeCall call = {&rows, &columns, planes, sizes[0], sizes[1], sizes[4], sizes[5], probabilities != 0, out};
  const Level& loops = level_of(level);
  return on_threads(count, threads, [&](auto next) {
    std::vector<float> buffers[4];
    buffers[0].resize((size_t)columns.n_in + 2 * BLOCK);
    for (int i : {1, 2, 3}) buffers[i].resize((size_t)columns.padded + 2 * BLOCK);
    for (int64_t item; (item = next()) >= 0;) loops.resize_plane(call, item, buffers);
  });
} catch (const std::exception&) {
  return 1;
}

// previous (N, P) float32, features (P, C), dense (C,), out (N, P, C): float32, or float16 where half is 1.
PRT_API int pixelrt_fuse_scales(const float* previous, const void* features, const void* dense, int64_t targets,
                                int64_t positions, int64_t channels, int64_t half, int64_t level, int64_t threads,
                                void* out) try {
  const FuseCall call = {previous, features, dense, targets, positions, channels, half != 0, out};
  const Level& loops = level_of(level);
  return on_threads(positions, threads, [&](auto next) {
    std::vector<float> row((size_t)channels * 3);
    for (int64_t item; (item = next()) >= 0;) loops.fuse_position(call, item, row.data());
  });
} catch (const std::exception&) {
  return 1;
}

// masks: the scales one after the other, (N, h_l, w_l) each; sizes (L, 2), weights (L,), out (N, height, width).
PRT_API int pixelrt_combine_scales(const float* masks, const int32_t* sizes, const float* weights, int64_t levels,
                                   int64_t count, int64_t height, int64_t width, int64_t level, int64_t threads,
                                   float* out) try {
  std::vector<const float*> scales;
  for (int64_t l = 0; l < levels; ++l) {
    scales.push_back(masks);
    masks += count * sizes[2 * l] * sizes[2 * l + 1];
  }
  const CombineCall call = {scales.data(), sizes, weights, (int)levels, (int)height, (int)width, out};
  const Level& loops = level_of(level);
  return on_threads(count * height, threads, [&](auto next) {
    for (int64_t item; (item = next()) >= 0;) loops.combine_row(call, item);
  });
} catch (const std::exception&) {
  return 1;
}

// Shapes as in DeformCall; value, weights and out float32, or float16 where half is 1.
PRT_API int pixelrt_deform_attn(const void* value, const int32_t* levels, const float* locations, const void* weights,
                                int64_t batch, int64_t positions, int64_t queries, int64_t heads, int64_t width,
                                int64_t level_count, int64_t points, int64_t half, int64_t level, int64_t threads,
                                void* out) try {
  const DeformCall call = {value, levels, locations, weights, positions, queries, heads, width, level_count, points,
                           half != 0, out};
  const Level& loops = level_of(level);
  return on_threads(batch * queries, threads, [&](auto next) {
    std::vector<float> sum((size_t)width);
    for (int64_t item; (item = next()) >= 0;) loops.deform_query(call, item, sum.data());
  });
} catch (const std::exception&) {
  return 1;
}
