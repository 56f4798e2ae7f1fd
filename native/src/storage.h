// Reading and writing one element of a stored tensor. bf16 rounds to nearest even; NaN stays NaN.
#pragma once
#include <cstdint>
#include <cstring>

#include "freehold/kernels.h"

namespace freehold {

inline float bf16_to_f32(std::uint16_t h) {
  const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline std::uint16_t f32_to_bf16(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16, size = h & 0x7fffu;
  std::uint32_t bits;
  if (size >= 0x7c00u) {
    bits = 0x7f800000u | (size & 0x3ffu) << 13;
  } else if (size >= 0x400u) {
    bits = (size << 13) + (112u << 23);
  } else {  // a multiple of 2^-24
    const float value = static_cast<float>(size) * 5.9604644775390625e-08f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline float load_element(const void* p, Storage s, std::size_t i) {
  return s == Storage::f32 ? static_cast<const float*>(p)[i] : bf16_to_f32(static_cast<const std::uint16_t*>(p)[i]);
}

inline float element(const float* p, std::size_t i) { return p[i]; }
inline float element(const std::uint16_t* p, std::size_t i) { return bf16_to_f32(p[i]); }

inline void store_element(void* p, Storage s, std::size_t i, float value) {
  if (s == Storage::f32) {
    static_cast<float*>(p)[i] = value;
  } else {
    static_cast<std::uint16_t*>(p)[i] = f32_to_bf16(value);
  }
}

}  // namespace freehold
