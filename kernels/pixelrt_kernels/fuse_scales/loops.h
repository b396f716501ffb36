// The host's loops over the bodies of kernel.cuh. Included once for each instruction set (see level.inc).

template <class T>
static void fuse_position_of(const FuseCall& call, int64_t p, float* row) {
  const int64_t channels = call.channels;
  float *__restrict feature = row, *__restrict add = row + channels;
  for (int64_t c = 0; c < channels; ++c) {
    feature[c] = to_float(static_cast<const T*>(call.features)[p * channels + c]);
    add[c] = to_float(static_cast<const T*>(call.dense)[c]);
  }
  for (int64_t n = 0; n < call.targets; ++n) {
    const float focus = probability(call.previous[n * call.positions + p]) + 1.0f;
    T* __restrict out = static_cast<T*>(call.out) + (n * call.positions + p) * channels;
    for (int64_t c = 0; c < channels; ++c) from_float(fused(focus, feature[c], add[c]), out + c);
  }
}

// All targets at position p. row: scratch of 2 * C values.
static void fuse_position(const FuseCall& call, int64_t p, float* row) {
  call.half ? fuse_position_of<Half>(call, p, row) : fuse_position_of<float>(call, p, row);
}

// Row `item` of the N * height rows.
static void combine_row(const CombineCall& call, int64_t item) {
  const int y = (int)(item % call.height);
  float* out = call.out + item * call.width;
  for (int l = 0; l < call.levels; ++l) {
    const int h = call.sizes[2 * l], w = call.sizes[2 * l + 1];
    const float* plane = call.scales[l] + item / call.height * h * w;
    const Tap row = tap_of(y, h, call.height);
    for (int x = 0; x < call.width; ++x) {
      const float value = call.weights[l] * resized(plane, h, w, row, tap_of(x, w, call.width));
      out[x] = l ? out[x] + value : value;
    }
  }
}
