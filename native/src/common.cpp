// Kernels whose speed does not matter, written once for every instruction set; and the dispatch.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "freehold/kernels.h"
#include "code_bytes.h"
#include "storage.h"

namespace freehold {

Status pack_weight(const void* w, Storage from, int out_features, int in, void* packed, Storage to) {
  if (out_features < 1 || in < 1) return Status::bad_argument;
  const std::size_t panels = (static_cast<std::size_t>(out_features) + kPanel - 1) / kPanel;
  for (std::size_t p = 0; p < panels; ++p) {
    for (int lane = 0; lane < kPanel; ++lane) {
      const std::size_t row = p * kPanel + lane;
      const bool real = row < static_cast<std::size_t>(out_features);
      for (int i = 0; i < in; ++i) {
        const float value = real ? load_element(w, from, row * in + i) : 0.0f;
        store_element(packed, to, (p * in + i) * kPanel + lane, value);
      }
    }
  }
  return Status::ok;
}

Status pack_codes(const std::uint8_t* codes, WeightKind kind, int out_features, int in, std::uint32_t* packed) {
  const int bits = kind == WeightKind::int8 ? 8 : 4, many = 32 / bits;
  if ((kind != WeightKind::int8 && kind != WeightKind::int4) || out_features < 1 || in < 1 || in % many != 0)
    return Status::bad_argument;
  const std::size_t panels = (static_cast<std::size_t>(out_features) + kPanel - 1) / kPanel, words = in / many;
  std::fill(packed, packed + panels * words * kPanel, 0u);
  for (std::size_t row = 0; row < static_cast<std::size_t>(out_features); ++row) {
    std::uint32_t* to = packed + row / kPanel * words * kPanel + row % kPanel;
    const std::uint8_t* from = codes + row * in;
    for (std::size_t k = 0; k < words; ++k, to += kPanel, from += many)
      for (int i = 0; i < many; ++i) *to |= static_cast<std::uint32_t>(from[i]) << code_shift(bits, i);
  }
  return Status::ok;
}

bool takes_coded_inputs(const Weight& w) { return w.kind == WeightKind::int8 || (w.kind == WeightKind::int4 && byte_values(w.table).unit > 0.0f); }

Status unpack_rows(const Weight& w, const std::int64_t* rows, int n, float* to) {
  for (int i = 0; i < n; ++i, to += w.in) {
    if (rows[i] < 0 || rows[i] >= w.out) return Status::bad_argument;
    const std::size_t panel = static_cast<std::size_t>(rows[i]) / kPanel, lane = static_cast<std::size_t>(rows[i]) % kPanel;
    const int many = w.kind == WeightKind::int8 ? 4 : 8;
    const auto word = [&](int k) {
      return static_cast<const std::uint32_t*>(w.data)[(panel * (w.in / many) + k / many) * kPanel + lane];
    };
    const auto value = [&](int k) {
      if (w.kind == WeightKind::f32) return static_cast<const float*>(w.data)[(panel * w.in + k) * kPanel + lane];
      if (w.kind == WeightKind::bf16)
        return bf16_to_f32(static_cast<const std::uint16_t*>(w.data)[(panel * w.in + k) * kPanel + lane]);
      if (w.kind == WeightKind::f16)
        return f16_to_f32(static_cast<const std::uint16_t*>(w.data)[(panel * w.in + k) * kPanel + lane]);
      const std::size_t at = (panel * (w.in / w.group) + k / w.group) * kPanel + lane;
      const float number = w.kind == WeightKind::int4 ? w.table[word(k) >> code_shift(4, k % 8) & 15]
                                                      : static_cast<float>(static_cast<std::int8_t>(word(k) >> code_shift(8, k % 4)));
      return w.offsets == nullptr ? number * w.scales[at] : std::fma(number, w.scales[at], w.offsets[at]);
    };
    for (int k = 0; k < w.in; ++k) to[k] = value(k);
  }
  return Status::ok;
}

Status rope_table(const std::int64_t* positions, int rows, const float* inv_freq, int half, float scale, float* cos,
                  float* sin) {
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < half; ++i) {
      // The angle is rounded to fp32 as the models were trained with; its cosine is then exact to the last bit.
      const float angle = static_cast<float>(positions[r]) * inv_freq[i];
      cos[static_cast<std::size_t>(r) * half + i] = static_cast<float>(std::cos(static_cast<double>(angle))) * scale;
      sin[static_cast<std::size_t>(r) * half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * scale;
    }
  }
  return Status::ok;
}

Status route_sigmoid(const float* logits, int rows, int experts, const float* bias, int topk, std::int32_t* ids,
                     float* weights) {
  if (topk < 1 || topk > experts) return Status::bad_argument;
  std::vector<float> score(experts), choice(experts);
  std::vector<std::int32_t> order(experts);
  for (int r = 0; r < rows; ++r) {
    const float* row = logits + static_cast<std::size_t>(r) * experts;
    for (int e = 0; e < experts; ++e) {
      score[e] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(row[e]))));
      choice[e] = score[e] + bias[e];
      order[e] = e;
    }
    std::partial_sort(order.begin(), order.begin() + topk, order.end(), [&](int a, int b) {
      return choice[a] != choice[b] ? choice[a] > choice[b] : a < b;
    });
    std::sort(order.begin(), order.begin() + topk);
    float sum = 0.0f;
    for (int i = 0; i < topk; ++i) sum += score[order[i]];
    for (int i = 0; i < topk; ++i) {
      ids[static_cast<std::size_t>(r) * topk + i] = order[i];
      weights[static_cast<std::size_t>(r) * topk + i] = score[order[i]] / sum;
    }
  }
  return Status::ok;
}

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512bf16_kernels;
#endif

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512bf16:
      return isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("fma");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return isa == Isa::portable;
#endif
}

Isa best_isa() {
  if (isa_supported(Isa::avx512bf16)) return Isa::avx512bf16;
  if (isa_supported(Isa::avx512)) return Isa::avx512;
  if (isa_supported(Isa::avx2)) return Isa::avx2;
  return Isa::portable;
}

const Kernels& kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512bf16) return avx512bf16_kernels;
  if (isa == Isa::avx512) return avx512_kernels;
  if (isa == Isa::avx2) return avx2_kernels;
#endif
  (void)isa;
  return portable_kernels;
}

}  // namespace freehold
