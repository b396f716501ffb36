// mask = bilinear(crop(bilinear(low_res, S x S), h' x w'), H x W) > 0, one element at a time.
//
// The specification is reference.py, chain.py, labels.py and probability.py; letters and roundings are theirs.
// This is the body, which every compiler sees; gpu.cuh has the kernels and rows.h the host's loops. Who includes it
// defines PRT_HD (what a function is declared with) and PRT_FMA(a, b, c) (one rounding). No product and sum may be contracted besides those: -ffp-contract=off, -fmad=false.
//
// Tie rule: a logit of exactly zero is outside (`> 0`); of equal products score * p the first mask owns the pixel.

struct Tap {
  int low;  // reads low and low + 1, the latter held inside
  float keep, t;
};

PRT_HD Tap tap_of(int i, int n_in, int n_out) {
  const float scale = (float)n_in / (float)n_out;
  float position = PRT_FMA(scale, (float)i + 0.5f, -0.5f);
  position = position > 0.0f ? position : 0.0f;
  const int low = (int)position < n_in - 1 ? (int)position : n_in - 1;
  const float t = position - (float)low;
  return {low, 1.0f - t, t};
}

PRT_HD float mix(float near, float far, float keep, float t) { return PRT_FMA(near, keep, far * t); }

PRT_HD float bits_to_float(int bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

PRT_HD int float_to_bits(float value) {
  int bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

PRT_HD float probability(float x) {
  float z = -x;
  z = z < -87.0f ? -87.0f : z;
  z = z > 87.0f ? 87.0f : z;
  const float rounder = 12582912.0f;  // 1.5 * 2^23
  const float biased = z * 1.44269504088896341f + rounder;
  const float k = biased - rounder;
  z = z - k * 0.693359375f;
  z = z - k * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * z + 1.3981999507e-3f;
  y = y * z + 8.3334519073e-3f;
  y = y * z + 4.1665795894e-2f;
  y = y * z + 1.6666665459e-1f;
  y = y * z + 0.5f;
  y = y * z;
  y = y * z;
  y = y + z;
  y = y + 1.0f;
  const int power = float_to_bits(biased) - 0x4B400000 + 127;
  y = y * bits_to_float((int)((unsigned)power << 23));
  return 1.0f / (y + 1.0f);
}
