// The host's loop over the body of kernel.cuh. Included once for each instruction set (see level.inc).

template <class T>
static void deform_query_of(const DeformCall& call, int64_t item, float* __restrict sum) {
  const int64_t image = item / call.queries, width = call.width, stride = call.heads * width;
  const int64_t samples = call.level_count * call.points;
  for (int64_t head = 0; head < call.heads; ++head) {
    std::memset(sum, 0, (size_t)width * sizeof(float));
    const T* map = static_cast<const T*>(call.value) + image * call.positions * stride + head * width;
    for (int64_t s = 0; s < samples; ++s) {
      const int32_t* level = call.levels + s / call.points * 3;
      const int64_t at = (item * call.heads + head) * samples + s;
      const float weight = to_float(static_cast<const T*>(call.weights)[at]);
      const Sample sample =
          sample_of(call.locations[2 * at], call.locations[2 * at + 1], weight, level[0], level[1], level[2]);
      for (int k = 0; k < 4; ++k) {
        const float share = sample.share[k];
        if (share == 0.0f) continue;
        const T* corner = map + ((int64_t)sample.base + (k & 1) + (k >> 1) * level[1]) * stride;
        for (int64_t c = 0; c < width; ++c) sum[c] += share * to_float(corner[c]);
      }
    }
    T* out = static_cast<T*>(call.out) + (item * call.heads + head) * width;
    for (int64_t c = 0; c < width; ++c) from_float(sum[c], out + c);
  }
}

// All heads of query `item` of the B * Q. sum: scratch of d values.
static void deform_query(const DeformCall& call, int64_t item, float* sum) {
  call.half ? deform_query_of<Half>(call, item, sum) : deform_query_of<float>(call, item, sum);
}
