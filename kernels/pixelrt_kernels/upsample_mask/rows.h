// The host's row loops over the body of kernel.cuh. Included once for each instruction set (see level.inc).
//
// An output row is mixed from two content rows at full width; a content row from two low-res rows at its width. Each
// is made once, as the loop comes down, and two of each are held: float rows, never a plane.

// dst[j] = mix(src[low], src[low + 1]) for j of `part`. src must be readable 2 * BLOCK past its end.
static void stretch(const float* __restrict src, const Axis& axis, Range part, float* __restrict dst) {
  const int32_t* __restrict low = axis.low.data();
  const float* __restrict keep = axis.keep.data();
  const float* __restrict t = axis.t.data();
#if PRT_LANES == 16
  if (axis.near) {  // maskz: GCC 12 warns of the undefined register in the plain form
    for (int j = part.begin; j < part.end; j += 16) {
      const __m512i lane = _mm512_loadu_si512(axis.lane.data() + j);
      const __m512 near = _mm512_maskz_permutexvar_ps(0xFFFF, lane, _mm512_loadu_ps(src + low[j]));
      const __m512 far = _mm512_maskz_permutexvar_ps(0xFFFF, lane, _mm512_loadu_ps(src + low[j] + 1));
      const __m512 right = _mm512_mul_ps(far, _mm512_loadu_ps(t + j));
      _mm512_storeu_ps(dst + j, _mm512_fmadd_ps(near, _mm512_loadu_ps(keep + j), right));
    }
    return;
  }
#elif PRT_LANES == 8
  if (axis.near) {
    for (int j = part.begin; j < part.end; j += 8) {
      const __m256i lane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(axis.lane.data() + j));
      const __m256 near = _mm256_permutevar8x32_ps(_mm256_loadu_ps(src + low[j]), lane);
      const __m256 far = _mm256_permutevar8x32_ps(_mm256_loadu_ps(src + low[j] + 1), lane);
      const __m256 right = _mm256_mul_ps(far, _mm256_loadu_ps(t + j));
      _mm256_storeu_ps(dst + j, _mm256_fmadd_ps(near, _mm256_loadu_ps(keep + j), right));
    }
    return;
  }
#endif
  for (int j = part.begin; j < part.end; ++j) dst[j] = mix(src[low[j]], src[low[j] + 1], keep[j], t[j]);
}

static void mix_rows(const float* __restrict near, const float* __restrict far, float keep, float t, Range part,
                     float* __restrict dst) {
  for (int j = part.begin; j < part.end; ++j) dst[j] = mix(near[j], far[j], keep, t);
}

static int next_inside(int low, int n) { return low + 1 < n ? low + 1 : n - 1; }

// Row r of the low-res plane at the content's width.
static const float* stretched_row(Stream& s, const Chain& chain, int r) {
  float* row = s.stretched[r & 1].data();
  if (s.stretched_at[r & 1] != r) {
    const int w = chain.square_columns.n_in;
    std::memcpy(s.source.data(), s.plane + (size_t)r * w, (size_t)w * sizeof(float));
    s.source[w] = s.source[w - 1];
    stretch(s.source.data(), chain.square_columns, s.content_wide, row);
    s.stretched_at[r & 1] = r;
  }
  return row;
}

// Row c of the content at the output's width.
static const float* enlarged_row(Stream& s, const Chain& chain, int c) {
  float* row = s.enlarged[c & 1].data();
  if (s.enlarged_at[c & 1] != c) {
    const Axis& axis = chain.square_rows;
    const int low = axis.low[c];
    const float* near = stretched_row(s, chain, low);
    const float* far = stretched_row(s, chain, next_inside(low, axis.n_in));
    mix_rows(near, far, axis.keep[c], axis.t[c], s.content_wide, s.content.data());
    stretch(s.content.data(), chain.original_columns, s.wide, row);
    s.enlarged_at[c & 1] = c;
  }
  return row;
}

// Row y of the output, in its columns `s.wide`.
static const float* out_row(Stream& s, const Chain& chain, int y) {
  const Axis& axis = chain.original_rows;
  const int low = axis.low[y];
  const float* near = enlarged_row(s, chain, low);
  const float* far = enlarged_row(s, chain, next_inside(low, axis.n_in));
  mix_rows(near, far, axis.keep[y], axis.t[y], s.wide, s.out.data());
  return s.out.data();
}

// Bit j: v[j] > 0.
static unsigned positive16(const float* v) {
#if PRT_LANES == 16
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(v), _mm512_setzero_ps(), _CMP_GT_OQ);
#elif PRT_LANES == 8
  const __m256 zero = _mm256_setzero_ps();
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(v), zero, _CMP_GT_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(v + 8), zero, _CMP_GT_OQ));
  return (unsigned)(low | high << 8);
#else
  unsigned bits = 0;
  for (int j = 0; j < 16; ++j) bits |= (unsigned)(v[j] > 0.0f) << j;
  return bits;
#endif
}

static void add_probabilities(const float* __restrict v, double* __restrict sum) {
  float p[16];
  for (int j = 0; j < 16; ++j) p[j] = v[j] > 0.0f ? probability(v[j]) : 0.0f;
  for (int j = 0; j < 16; ++j) sum[j] += (double)p[j];
}

// Columns of the output outside of which no row `from` <= y < `to` can be positive: a mean of values that are not
// positive is not. begin == end where there are none.
static Range positive_columns(const Chain& chain, const float* plane, int from, int to) {
  const Axis &rows = chain.square_rows, &columns = chain.square_columns, &wide = chain.original_columns;
  const int first = rows.low[chain.original_rows.low[from]];
  const int content_last = next_inside(chain.original_rows.low[to - 1], chain.original_rows.n_in);
  const int last = next_inside(rows.low[content_last], rows.n_in);
  const int w = columns.n_in;
  int begin = w, end = 0;
  for (int r = first; r <= last; ++r) {
    const float* row = plane + (size_t)r * w;
    for (int x = 0; x < begin; ++x)
      if (row[x] > 0.0f) begin = x;
    for (int x = w - 1; x >= end; --x)
      if (row[x] > 0.0f) end = x + 1;
  }
  if (begin >= end) return {0, 0};
  const auto reached = [](const Axis& axis, int& from_column, int& to_column) {
    const auto low = axis.low.begin(), stop = low + axis.n_out;
    const int first_reached = (int)(std::lower_bound(low, stop, from_column - 1) - low);
    to_column = (int)(std::lower_bound(low, stop, to_column) - low);
    from_column = first_reached;
  };
  reached(columns, begin, end);
  reached(wide, begin, end);
  return begin < end ? Range{begin / BLOCK * BLOCK, rounded_up(end)} : Range{0, 0};
}

// Part `part` of plane n: its bits or bytes, and what they add up to.
static Part mask_part(const MaskCall& call, int n, int part, Stream& s) {
  const Chain& chain = *call.chain;
  const int height = chain.original_rows.n_out, width = chain.original_columns.n_out, pitch = (width + 7) / 8;
  const int from = part * PART_ROWS, to = std::min(height, from + PART_ROWS);
  const float* plane = call.low_res + (size_t)n * chain.square_rows.n_in * chain.square_columns.n_in;
  const Range columns = positive_columns(chain, plane, from, to);
  if (call.bits) std::memset(call.bits + ((size_t)n * height + from) * pitch, 0, (size_t)(to - from) * pitch);
  if (call.bytes) std::memset(call.bytes + ((size_t)n * height + from) * width, 0, (size_t)(to - from) * width);
  Part found;
  if (columns.begin == columns.end) return found;
  s.begin(plane, columns, chain);
  const int end = std::min(columns.end, width);
  double sum[16] = {0};
  int left = width, right = 0;
  for (int y = from; y < to; ++y) {
    const float* row = out_row(s, chain, y);
    uint8_t* bits = call.bits ? call.bits + ((size_t)n * height + y) * pitch : nullptr;
    int first = -1, last = -1;
    for (int x = columns.begin; x < columns.end; x += 16) {
      unsigned on = positive16(row + x);
      if (x + 16 > width) on &= (1u << (width - x)) - 1;  // the columns past the end repeat the last one
      if (!on) continue;
      if (first < 0) first = x + __builtin_ctz(on);
      last = x + 31 - __builtin_clz(on);
      found.area += __builtin_popcount(on);
      if (x + 16 <= width) {
        add_probabilities(row + x, sum);
      } else {
        float v[16];
        for (int j = 0; j < 16; ++j) v[j] = x + j < width ? row[x + j] : 0.0f;
        add_probabilities(v, sum);
      }
      if (bits) {
        bits[x / 8] = REVERSED[on & 255];
        if (x / 8 + 1 < pitch) bits[x / 8 + 1] = REVERSED[on >> 8];
      }
    }
    if (call.bytes) {
      uint8_t* bytes = call.bytes + ((size_t)n * height + y) * width;
      for (int x = columns.begin; x < end; ++x) bytes[x] = row[x] > 0.0f;
    }
    if (first < 0) continue;
    left = std::min(left, first);
    right = std::max(right, last + 1);
    if (found.y1 == 0) found.y0 = y;
    found.y1 = y + 1;
  }
  if (found.area) found.x0 = left, found.x1 = right;
  for (int j = 0; j < 16; ++j) found.sum += sum[j];
  return found;
}

// Plane k of a call.
static void resize_plane(const ResizeCall& call, int64_t k, std::vector<float>* buffers) {
  const Axis &rows = *call.rows, &columns = *call.columns;
  const int w = columns.n_in, width = columns.n_out;
  float* source = buffers[0].data();
  float* __restrict mixed = buffers[1].data();
  int at[2] = {-1, -1};
  const auto stretched = [&](int r) {
    float* row = buffers[2 + (r & 1)].data();
    if (at[r & 1] != r) {
      std::memcpy(source, call.planes + ((size_t)k * call.held + r - call.first) * w, (size_t)w * sizeof(float));
      source[w] = source[w - 1];
      stretch(source, columns, {0, rounded_up(width)}, row);
      at[r & 1] = r;
    }
    return row;
  };
  for (int y = call.from; y < call.to; ++y) {
    const float* near = stretched(rows.low[y]);
    const float* far = stretched(next_inside(rows.low[y], rows.n_in));
    mix_rows(near, far, rows.keep[y], rows.t[y], {0, rounded_up(width)}, mixed);
    float* __restrict out = call.out + ((size_t)k * (call.to - call.from) + y - call.from) * width;
    if (call.probabilities) {
      for (int x = 0; x < width; ++x) out[x] = probability(mixed[x]);
    } else {
      std::memcpy(out, mixed, (size_t)width * sizeof(float));
    }
  }
}

// Part `part` of the label map; areas are added to the scratch.
static void label_part(const LabelCall& call, int part, Stream& s, LabelScratch& scratch) {
  const Chain& chain = *call.chain;
  const int height = chain.original_rows.n_out, width = chain.original_columns.n_out;
  const int padded = chain.original_columns.padded, from = part * LABEL_ROWS, to = std::min(height, from + LABEL_ROWS);
  const size_t plane = (size_t)chain.square_rows.n_in * chain.square_columns.n_in;
  const int pixels = (to - from) * padded;
  std::fill_n(scratch.best.begin(), pixels, -1.0f);
  std::fill_n(scratch.owner.begin(), pixels, 0);
  for (int n = 0; n < call.count; ++n) {
    s.begin(call.low_res + n * plane, {0, rounded_up(width)}, chain);
    const float score = call.scores[n];
    int64_t whole = 0;
    for (int y = from; y < to; ++y) {
      const float* __restrict row = out_row(s, chain, y);
      float* __restrict best = scratch.best.data() + (size_t)(y - from) * padded;
      int32_t* __restrict owner = scratch.owner.data() + (size_t)(y - from) * padded;
      float* __restrict p = scratch.p.data();
      for (int x = 0; x < width; ++x) p[x] = probability(row[x]);
      int in_row = 0;
      for (int x = 0; x < width; ++x) in_row += p[x] >= 0.5f;
      for (int x = 0; x < width; ++x) {
        const int32_t mine = p[x] >= 0.5f ? n | INSIDE : n;
        owner[x] = p[x] * score > best[x] ? mine : owner[x];
      }
      for (int x = 0; x < width; ++x) best[x] = p[x] * score > best[x] ? p[x] * score : best[x];
      whole += in_row;
    }
    scratch.whole[n] += whole;
  }
  for (int y = from; y < to; ++y)
    for (int x = 0; x < width; ++x) {
      const size_t at = (size_t)(y - from) * padded + x;
      const int32_t n = scratch.owner[at] & ~INSIDE;
      const bool on = (scratch.owner[at] & INSIDE) != 0;
      scratch.won[n] += 1;
      scratch.kept[n] += on;
      call.owner[(size_t)y * width + x] = (int16_t)(on ? n : -1);
    }
}
