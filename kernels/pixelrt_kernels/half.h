// float16 as the host holds it: bits. Exact to float32; from float32 rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace pixelrt {

struct Half {
  uint16_t bits;
};

inline float to_float(float value) { return value; }

inline float to_float(Half value) {
  const uint32_t rest = value.bits & 0x7fffu, sign = (uint32_t)(value.bits & 0x8000u) << 16;
  uint32_t bits = rest << 13;
  float scaled;
  std::memcpy(&scaled, &bits, 4);
  scaled *= 0x1p112f;  // the exponents' bias apart; makes numbers of subnormals too
  std::memcpy(&bits, &scaled, 4);
  if (rest >= 0x7c00u) bits |= 0x7f800000u;
  bits |= sign;
  std::memcpy(&scaled, &bits, 4);
  return scaled;
}

inline void from_float(float value, float* to) { *to = value; }

inline void from_float(float value, Half* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) {  // 65536 and more, infinity, nan
    bits = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (bits < 0x38800000u) {  // subnormal: the sum with 1/2 leaves the rounded bits at its end
    float shifted;
    std::memcpy(&shifted, &bits, 4);
    shifted += 0.5f;
    std::memcpy(&bits, &shifted, 4);
    bits -= 0x3f000000u;
  } else {
    bits = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
  }
  to->bits = (uint16_t)(sign | bits);
}

}  // namespace pixelrt
