// Just enough of CUDA to run the kernels on a CPU, one block after the other: each thread is a coroutine, which gives
// way at warp collectives and barriers. A collective that not all live lanes of a warp reach, or that they reach at
// different places, ends the program. It shows indices and logic, not memory ordering between threads, nor speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using __half = pixelrt::Half;
struct __half2 {
  __half low, high;
};
inline float __half2float(__half v) { return pixelrt::to_float(v); }
inline __half __float2half_rn(float v) {
  __half h;
  pixelrt::from_float(v, &h);
  return h;
}
inline float2 __half22float2(__half2 v) { return {__half2float(v.low), __half2float(v.high)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

using std::max;
using std::min;

namespace emulation {

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
inline char* dynamic_shared;

struct Gathering {  // of a warp, or of a block
  int live = 0, arrived = 0, place = 0;
  unsigned phase = 0, mask = 0, result_mask = 0;
  uint64_t slot[32], result[32];
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  dim3 index;
  bool done = false;
};

inline std::vector<Thread> threads;
inline std::vector<Gathering> warps;
inline Gathering block;
inline ucontext_t scheduler;
inline int current;
inline std::function<void()> body;

inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

inline void give_way() { swapcontext(&threads[current].context, &scheduler); }

inline void release(Gathering& g) {
  std::copy(g.slot, g.slot + 32, g.result);
  g.result_mask = g.mask, g.mask = 0, g.arrived = 0;
  ++g.phase;
}

// Wait for all live threads of `g`; place: a line of the source, the same for all.
inline void gather(Gathering& g, int lane, uint64_t value, int place) {
  if (g.arrived && g.place != place) fail("threads meet at different places");
  g.place = place;
  if (lane >= 0) g.slot[lane] = value, g.mask |= 1u << lane;
  const unsigned phase = g.phase;
  if (++g.arrived == g.live) return release(g);
  while (g.phase == phase) give_way();
}

inline int lane() { return current % 32; }
inline Gathering& warp() { return warps[current / 32]; }

template <class T>
T shuffled(T value, int from, int place) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  gather(warp(), lane(), bits, place);
  if (from < 0 || from > 31 || !(warp().result_mask >> from & 1)) from = lane();
  std::memcpy(&value, &warp().result[from], sizeof value);
  return value;
}

inline unsigned ballot(bool on, int place) {
  gather(warp(), lane(), on, place);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i)
    if (warp().result_mask >> i & 1) bits |= (unsigned)warp().result[i] << i;
  return bits;
}

inline unsigned match_any(int value, int place) {
  gather(warp(), lane(), (uint32_t)value, place);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i)
    if (warp().result_mask >> i & 1) bits |= (unsigned)(warp().result[i] == (uint32_t)value) << i;
  return bits;
}

inline void start() {
  body();
  Gathering& w = warp();
  threads[current].done = true;
  // Those who wait do so for one fewer.
  if (--w.live && w.arrived == w.live) release(w);
  if (--block.live && block.arrived == block.live) release(block);
  give_way();
}

inline void run_block(int count) {
  threads.resize(count);
  warps.assign((count + 31) / 32, Gathering());
  block = Gathering();
  block.live = count;
  for (int i = 0; i < count; ++i) {
    Thread& t = threads[i];
    t.done = false;
    t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    ++warps[i / 32].live;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.data();
    t.context.uc_stack.ss_size = t.stack.size();
    t.context.uc_link = nullptr;
    makecontext(&t.context, start, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (current = 0; current < count; ++current) {
      if (threads[current].done) continue;
      threadIdx = threads[current].index;
      swapcontext(&scheduler, &threads[current].context);
      any = true;
    }
  }
}

inline void run(dim3 grid, dim3 per_block, int shared, std::function<void()> kernel) {
  std::vector<float4> memory(shared / sizeof(float4) + 1, float4{NAN, NAN, NAN, NAN});
  dynamic_shared = reinterpret_cast<char*>(memory.data());
  body = std::move(kernel);
  gridDim = grid, blockDim = per_block;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block((int)(per_block.x * per_block.y * per_block.z));
      }
}

}  // namespace emulation

using emulation::blockDim;
using emulation::blockIdx;
using emulation::gridDim;
using emulation::threadIdx;

#define __syncthreads() emulation::gather(emulation::block, -1, 0, __LINE__)
#define __ballot_sync(mask, on) emulation::ballot(on, __LINE__)
#define __any_sync(mask, on) (emulation::ballot(on, __LINE__) != 0)
#define __match_any_sync(mask, value) emulation::match_any(value, __LINE__)
#define __shfl_sync(mask, value, from) emulation::shuffled(value, from, __LINE__)
#define __shfl_down_sync(mask, value, step) emulation::shuffled(value, emulation::lane() + (step), __LINE__)

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(unsigned v) { return __builtin_ffs((int)v); }
inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }
inline unsigned __brev(unsigned v) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (v >> i & 1) << (31 - i);
  return out;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = (uint64_t)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
