// One vector type for each instruction set, through the compiler's own vector extension: the kernels are written
// once and compiled once for each set. FH_LANES and the tile sizes come from the including file.
#pragma once
#include <cstdint>
#include <cstring>

namespace freehold {
namespace FH_ISA {

constexpr int W = FH_LANES;
typedef float vf __attribute__((vector_size(W * 4)));
typedef std::int32_t vi __attribute__((vector_size(W * 4)));
typedef std::uint32_t vu __attribute__((vector_size(W * 4)));
typedef std::uint16_t vh __attribute__((vector_size(W * 2)));

inline vf splat(float x) { return x - vf{}; }

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vf load(const std::uint16_t* p) {  // bf16
  vh h;
  std::memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}

inline vu load_words(const std::uint32_t* p) {
  vu v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

inline vf maximum(vf a, vf b) { return a > b ? a : b; }
inline vf minimum(vf a, vf b) { return a < b ? a : b; }

// The order of a sum over lanes is fixed: halves are added until one lane is left.
inline float sum_lanes(vf v) {
  float a[W];
  std::memcpy(a, &v, sizeof a);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  return a[0];
}

inline float max_lanes(vf v) {
  float a[W];
  std::memcpy(a, &v, sizeof a);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a[i] = a[i + half] > a[i] ? a[i + half] : a[i];
  return a[0];
}

// exp(x), about 1 ulp for x in [-87, 88]; exactly 0 below that, so a masked score weighs nothing. NaN stays NaN: the bounds
// come first, as a comparison with NaN gives what stands second.
inline vf exp_v(vf x) {
  const vf low = splat(-87.0f);
  const vf clamped = minimum(splat(88.0f), maximum(low, x));
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf n = (clamped * splat(1.44269504f) + magic) - magic;
  vf r = clamped - n * splat(0.693359375f);
  r = r + n * splat(2.12194440e-4f);
  vf p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = (p * r) * r + r + splat(1.0f);
  const vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  const vf value = p * (vf)power;
  return x < low ? vf{} : value;
}

}  // namespace FH_ISA
}  // namespace freehold
