// What the row loops of rows.h work on: tables of taps, and the few rows that are held at a time.
#pragma once

#include <cstdint>
#include <vector>

namespace pixelrt {

constexpr int BLOCK = 16;  // rows are computed in whole blocks of this many columns

inline int rounded_up(int n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// One resize along one axis. Tables reach past n_out to a whole block, the last tap repeated, so that the value at
// n_out is there for the next resize: it is what "low + 1 held inside" reads.
struct Axis {
  int n_in = 0, n_out = 0, padded = 0;
  bool near = false;           // the sources of every block of `lanes` outputs lie within `lanes` of its first
  std::vector<int32_t> low;    // (padded,)
  std::vector<float> keep, t;  // (padded,)
  std::vector<int32_t> lane;   // (padded,) low - low of the block's first
};

struct Chain {
  Axis square_rows, square_columns;      // h, w to h', w' of the content: that is the crop
  Axis original_rows, original_columns;  // h', w' to H, W
};

struct Range {
  int begin, end;  // whole blocks
};

// The rows one thread holds of one plane. `*_at`: which row a buffer holds, -1 for none.
struct Stream {
  const float* plane = nullptr;       // (h, w)
  Range wide{0, 0}, content_wide{0, 0};  // columns of the output and of the content that are computed
  std::vector<float> source, content, out;   // one row each: low-res, content, output
  std::vector<float> stretched[2];           // low-res rows at w'
  std::vector<float> enlarged[2];            // content rows at W
  int stretched_at[2] = {-1, -1}, enlarged_at[2] = {-1, -1};

  explicit Stream(const Chain& chain) {
    const int slack = 2 * BLOCK;
    source.assign(chain.square_columns.n_in + slack, 0.0f);
    content.assign(chain.square_columns.padded + slack, 0.0f);
    out.assign(chain.original_columns.padded + slack, 0.0f);
    for (int i : {0, 1}) {
      stretched[i].assign(content.size(), 0.0f);
      enlarged[i].assign(out.size(), 0.0f);
    }
  }

  void begin(const float* of, Range columns, const Chain& chain) {
    plane = of;
    wide = columns;
    const Axis& axis = chain.original_columns;
    const int last = axis.low[columns.end - 1] + 1;
    content_wide = {axis.low[columns.begin] / BLOCK * BLOCK, rounded_up(last + 1)};
    for (int i : {0, 1}) stretched_at[i] = enlarged_at[i] = -1;
  }
};

// One call of upsample_mask: N planes, each cut into parts of PART_ROWS output rows.
constexpr int PART_ROWS = 64;

struct Part {  // what is found in one part
  double sum = 0;
  int64_t area = 0;
  int x0 = 0, y0 = 0, x1 = 0, y1 = 0;
};

struct MaskCall {
  const Chain* chain;
  const float* low_res;  // (N, h, w)
  uint8_t* bits;         // (N, H, ceil(W / 8)), or null
  uint8_t* bytes;        // (N, H, W) of 0 and 1, or null
};

// One call of label_map; parts of LABEL_ROWS output rows.
constexpr int LABEL_ROWS = 16;
constexpr int32_t INSIDE = 1 << 30;  // beside an index: p was 0.5 or more

struct LabelCall {
  const Chain* chain;
  const float* low_res;  // (N, h, w)
  const float* scores;   // (N,)
  int count;
  int16_t* owner;  // (H, W)
};

struct LabelScratch {
  std::vector<float> best;        // (LABEL_ROWS, padded W) the best product so far
  std::vector<int32_t> owner;     // the same, whose it is, and INSIDE
  std::vector<float> p;           // of one row
  std::vector<int64_t> won, whole, kept;  // (N,) of this thread
  LabelScratch(int padded, int count)
      : best(LABEL_ROWS * padded), owner(LABEL_ROWS * padded), p(padded), won(count), whole(count), kept(count) {}
};

// One call of resize_rows: output rows `from` and on of one resize, from planes of which some rows are held.
struct ResizeCall {
  const Axis *rows, *columns;
  const float* planes;  // (K, held, columns->n_in)
  int held, first;      // rows of a plane that are there, and which the first of them is
  int from, to;
  bool probabilities;
  float* out;  // (K, to - from, columns->n_out)
};

}  // namespace pixelrt
