// The kernels over the body of kernel.cuh: binary masks, and the label map.
//
// One thread walks down columns of the output, as the host's loop comes down its rows: per column it holds two content
// values above each other, and of the low-res plane the two rows by two columns that they are made of. An output pixel
// then costs one mix; a content row three more, a low-res row four more, both rarer by the scale. All branches on rows
// are uniform. Bound by arithmetic: what is read and written is 1/30 of the pixels' float size.

struct RowTaps {
  Tap out;            // content rows of an output row
  Tap first, second;  // low-res rows of those two content rows
};

struct Plane {  // sizes of one call
  int h, w, square, content_h, content_w, height, width;
};

static __device__ __forceinline__ int inside(int low, int n) { return low + 1 < n ? low + 1 : n - 1; }

static __device__ __forceinline__ RowTaps row_taps(int y, const Plane& size) {
  const Tap out = tap_of(y < size.height ? y : size.height - 1, size.content_h, size.height);
  return {out, tap_of(out.low, size.h, size.square), tap_of(inside(out.low, size.content_h), size.h, size.square)};
}

struct Column {
  float keep, t;                            // of the output column, between two content columns
  int a, a_next, b, b_next;                 // low-res columns of those
  float keep_a, t_a, keep_b, t_b;
  float upper_a, upper_b, lower_a, lower_b;  // low-res rows `row` and the next, at the two content columns
  float above, below;                        // content rows `content` and the next, at the output column

  __device__ __forceinline__ void begin(int x, const Plane& size) {
    const Tap out = tap_of(x < size.width ? x : size.width - 1, size.content_w, size.width);
    const Tap tap_a = tap_of(out.low, size.w, size.square);
    const Tap tap_b = tap_of(inside(out.low, size.content_w), size.w, size.square);
    keep = out.keep, t = out.t;
    a = tap_a.low, a_next = inside(a, size.w), keep_a = tap_a.keep, t_a = tap_a.t;
    b = tap_b.low, b_next = inside(b, size.w), keep_b = tap_b.keep, t_b = tap_b.t;
    upper_a = upper_b = lower_a = lower_b = above = below = 0.0f;
  }

  __device__ __forceinline__ void shift_rows() { upper_a = lower_a, upper_b = lower_b; }

  __device__ __forceinline__ void load_lower(const float* row) {
    lower_a = mix(__ldg(row + a), __ldg(row + a_next), keep_a, t_a);
    lower_b = mix(__ldg(row + b), __ldg(row + b_next), keep_b, t_b);
  }

  __device__ __forceinline__ float content_value(const Tap& rows) const {
    return mix(mix(upper_a, lower_a, rows.keep, rows.t), mix(upper_b, lower_b, rows.keep, rows.t), keep, t);
  }
};

// COLUMNS columns of one plane that come down together.
template <int COLUMNS>
struct Walk {
  Column column[COLUMNS];
  int content, row;  // what `above` and `upper` hold; -2: nothing

  __device__ __forceinline__ void restart() { content = row = -2; }

  // Both rows of the low-res plane that content row `rows` is made of.
  __device__ __forceinline__ void reach_row(const float* plane, const Plane& size, int low) {
    if (low == row) return;
    const bool next = low == row + 1;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      if (!next) column[c].load_lower(plane + (size_t)low * size.w);
      column[c].shift_rows();
      column[c].load_lower(plane + (size_t)inside(low, size.h) * size.w);
    }
    row = low;
  }

  __device__ __forceinline__ void reach(const float* plane, const Plane& size, const RowTaps& taps) {
    if (taps.out.low == content) return;
    const bool next = taps.out.low == content + 1;
    if (!next) {
      reach_row(plane, size, taps.first.low);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) column[c].below = column[c].content_value(taps.first);
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) column[c].above = column[c].below;
    reach_row(plane, size, taps.second.low);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) column[c].below = column[c].content_value(taps.second);
    content = taps.out.low;
  }

  __device__ __forceinline__ float value(int c, const Tap& rows) const {
    return mix(column[c].above, column[c].below, rows.keep, rows.t);
  }
};

constexpr unsigned ALL = 0xffffffffu;
constexpr int MASK_COLUMNS = 2, MASK_WARPS = 4;  // a warp: 64 columns by 32 rows; a block: four side by side

// What one tile adds to its mask; without pixels x0 and y0 are the size, x1 and y1 zero.
struct TileFound {
  double sum;
  int area, x0, y0, x1, y1, unused;
};

// words (N, H, ceil(W / 32)): bytes ordered as numpy.packbits; found (N, tiles), one for each warp of the grid. Grid:
// tiles of columns, of rows, N; block (32, MASK_WARPS).
extern "C" __global__ void __launch_bounds__(32 * MASK_WARPS)
    pixelrt_upsample_mask(const float* __restrict__ low_res, int h, int w, int square, int content_h, int content_w,
                          int height, int width, unsigned* __restrict__ words,
                          TileFound* __restrict__ found) {
  const Plane size = {h, w, square, content_h, content_w, height, width};
  __shared__ RowTaps taps[32];
  const int lane = threadIdx.x, n = blockIdx.z;
  const int x0 = (blockIdx.x * MASK_WARPS + threadIdx.y) * 32 * MASK_COLUMNS, y0 = blockIdx.y * 32;
  if (threadIdx.y == 0) taps[lane] = row_taps(y0 + lane, size);
  __syncthreads();
  const size_t row_of_tiles = (size_t)n * gridDim.y + blockIdx.y;
  TileFound* tile = found + (row_of_tiles * gridDim.x + blockIdx.x) * MASK_WARPS + threadIdx.y;
  if (lane == 0) *tile = {0.0, 0, width, height, 0, 0, 0};
  if (x0 >= width) return;
  const int rows = min(32, height - y0), pitch = (width + 31) / 32, y = y0 + lane;
  const float* plane = low_res + (size_t)n * h * w;
  unsigned* words_of_lane = words + ((size_t)n * height + y) * pitch + x0 / 32;  // lane r writes row r

  Walk<MASK_COLUMNS> walk;
#pragma unroll
  for (int c = 0; c < MASK_COLUMNS; ++c) walk.column[c].begin(x0 + 32 * c + lane, size);
  walk.restart();

  // A mean of values that are not positive is not: most tiles of a mask end here.
  const int left = __shfl_sync(ALL, walk.column[0].a, 0);
  const int right = __shfl_sync(ALL, walk.column[MASK_COLUMNS - 1].b_next, 31), wide = right - left + 1;
  const int top = taps[0].first.low, tall = inside(taps[rows - 1].second.low, h) - top + 1;
  bool any = false;
  for (int i = lane; i < wide * tall; i += 32)
    any = any || __ldg(plane + (size_t)(top + i / wide) * w + left + i % wide) > 0.0f;
  if (!__any_sync(ALL, any)) {
#pragma unroll
    for (int c = 0; c < MASK_COLUMNS; ++c)
      if (lane < rows && x0 + 32 * c < width) words_of_lane[c] = 0;
    return;
  }

  unsigned mine[MASK_COLUMNS] = {0}, columns_on[MASK_COLUMNS] = {0};
  int area = 0, first = height, last = 0;
  float sum = 0.0f;
  double total = 0.0;
  for (int r = 0; r < rows; ++r) {
    const RowTaps& row = taps[r];
    walk.reach(plane, size, row);
    unsigned on_row = 0;
#pragma unroll
    for (int c = 0; c < MASK_COLUMNS; ++c) {
      const float v = walk.value(c, row.out);
      const bool on = v > 0.0f && x0 + 32 * c + lane < width;
      const unsigned bits = __ballot_sync(ALL, on);
      if (bits != 0 && on) sum += probability(v);
      mine[c] = lane == r ? bits : mine[c];
      columns_on[c] |= bits;
      on_row |= bits;
      area += __popc(bits);
    }
    if (on_row != 0) {
      first = min(first, y0 + r);
      last = y0 + r + 1;
    }
    if ((r & 7) == 7) total += (double)sum, sum = 0.0f;  // few enough in float32 to keep seven digits
  }
  total += (double)sum;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += __shfl_down_sync(ALL, total, step);
#pragma unroll
  for (int c = 0; c < MASK_COLUMNS; ++c)  // bits of each byte reversed: the first pixel is its highest bit
    if (lane < rows && x0 + 32 * c < width) words_of_lane[c] = __byte_perm(__brev(mine[c]), 0, 0x0123);
  if (lane != 0 || area == 0) return;
  int x_first = width, x_last = 0;
#pragma unroll
  for (int c = 0; c < MASK_COLUMNS; ++c) {
    if (columns_on[c] == 0) continue;
    x_first = min(x_first, x0 + 32 * c + __ffs(columns_on[c]) - 1);
    x_last = x0 + 32 * c + 32 - __clz(columns_on[c]);
  }
  *tile = {total, area, x_first, first, x_last, last, 0};
}

// scores (N,) and boxes (N, 4) of the tiles, added in a fixed order. Grid: N; block 32.
extern "C" __global__ void __launch_bounds__(32)
    pixelrt_mask_scores(const TileFound* __restrict__ found, int tiles, float* __restrict__ scores,
                        int* __restrict__ boxes) {
  const int n = blockIdx.x;
  double sum = 0.0;
  int area = 0, x0 = 1 << 30, y0 = 1 << 30, x1 = 0, y1 = 0;
  for (int i = threadIdx.x; i < tiles; i += 32) {
    const TileFound tile = found[(size_t)n * tiles + i];
    sum += tile.sum, area += tile.area;
    x0 = min(x0, tile.x0), y0 = min(y0, tile.y0), x1 = max(x1, tile.x1), y1 = max(y1, tile.y1);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_down_sync(ALL, sum, step), area += __shfl_down_sync(ALL, area, step);
    x0 = min(x0, __shfl_down_sync(ALL, x0, step)), y0 = min(y0, __shfl_down_sync(ALL, y0, step));
    x1 = max(x1, __shfl_down_sync(ALL, x1, step)), y1 = max(y1, __shfl_down_sync(ALL, y1, step));
  }
  if (threadIdx.x != 0) return;
  scores[n] = (float)(sum / ((double)area + 1e-6));
  boxes[4 * n] = area ? x0 : 0, boxes[4 * n + 1] = area ? y0 : 0, boxes[4 * n + 2] = x1, boxes[4 * n + 3] = y1;
}

constexpr int LABEL_TILE_ROWS = 16, LABEL_WARPS = 4;  // a warp: 32 columns by 16 rows; a block: four side by side
constexpr int INSIDE = 1 << 30;  // beside an index: p was 0.5 or more

// owner (H, W); counts (3, N): won, whole, kept, zeros on entry. Grid: tiles of columns, of rows; block
// (32, LABEL_WARPS); shared memory: 3 * N ints.
extern "C" __global__ void __launch_bounds__(32 * LABEL_WARPS)
    pixelrt_label_map(const float* __restrict__ low_res, const float* __restrict__ scores, int count, int h, int w,
                      int square, int content_h, int content_w, int height, int width, short* __restrict__ owner,
                      int* __restrict__ counts) {
  const Plane size = {h, w, square, content_h, content_w, height, width};
  __shared__ RowTaps taps[LABEL_TILE_ROWS];
  // Of each pixel the best product so far and whose it is. Each thread has its own column of them: in registers the
  // loop over rows would have to be unrolled, to more code than the instruction cache holds.
  __shared__ float best[LABEL_TILE_ROWS][32 * LABEL_WARPS];
  __shared__ int owner_of[LABEL_TILE_ROWS][32 * LABEL_WARPS];
  PRT_DYNAMIC_SHARED(int, counted);
  const int lane = threadIdx.x, thread = threadIdx.y * 32 + lane;
  const int x = (blockIdx.x * LABEL_WARPS + threadIdx.y) * 32 + lane, y0 = blockIdx.y * LABEL_TILE_ROWS;
  if (thread < LABEL_TILE_ROWS) taps[thread] = row_taps(y0 + thread, size);
  for (int i = thread; i < 3 * count; i += 32 * LABEL_WARPS) counted[i] = 0;
  __syncthreads();

  Walk<1> walk;
  walk.column[0].begin(x, size);
  for (int r = 0; r < LABEL_TILE_ROWS; ++r) best[r][thread] = -1.0f, owner_of[r][thread] = 0;
  for (int n = 0; n < count; ++n) {
    const float* plane = low_res + (size_t)n * h * w;
    const float score = __ldg(scores + n);
    walk.restart();
    int whole = 0;
    for (int r = 0; r < LABEL_TILE_ROWS; ++r) {
      walk.reach(plane, size, taps[r]);
      const float p = probability(walk.value(0, taps[r].out)), product = p * score;
      const bool counts_here = x < width && y0 + r < height;
      whole += __popc(__ballot_sync(ALL, counts_here && p >= 0.5f));
      if (product > best[r][thread]) best[r][thread] = product, owner_of[r][thread] = p >= 0.5f ? n | INSIDE : n;
    }
    if (lane == 0 && whole) atomicAdd(&counted[count + n], whole);
  }
  for (int r = 0; r < LABEL_TILE_ROWS; ++r) {
    const bool here = x < width && y0 + r < height;
    const int found = here ? owner_of[r][thread] : -1;
    const unsigned alike = __match_any_sync(ALL, found);  // one adds for all lanes with the same owner
    if (!here) continue;
    const bool on = (found & INSIDE) != 0;
    const int index = found & ~INSIDE;
    if (lane == __ffs(alike) - 1) {
      atomicAdd(&counted[index], __popc(alike));
      if (on) atomicAdd(&counted[2 * count + index], __popc(alike));
    }
    owner[(size_t)(y0 + r) * width + x] = (short)(on ? index : -1);
  }
  __syncthreads();
  for (int i = thread; i < 3 * count; i += 32 * LABEL_WARPS)
    if (counted[i]) atomicAdd(&counts[i], counted[i]);
}
