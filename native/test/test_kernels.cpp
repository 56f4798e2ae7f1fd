// Every kernel against a plain double-precision computation, on every instruction set that this processor has,
// on ragged sizes. Exits with the number of failures.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../src/storage.h"
#include "freehold/kernels.h"

using namespace freehold;

namespace {

int failures = 0;
const char* current = "";

void expect(bool ok, const char* what, double figure = 0.0) {
  if (ok) return;
  ++failures;
  std::printf("FAIL %s: %s (%g)\n", current, what, figure);
}

std::vector<float> randoms(std::size_t n, unsigned seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(engine);
  return v;
}

void test_linear(const Kernels& k, Storage storage, int rows, int in, int out) {
  current = "linear";
  const auto x = randoms(static_cast<std::size_t>(rows) * in, 1);
  auto w = randoms(static_cast<std::size_t>(out) * in, 2);
  if (storage == Storage::bf16)
    for (float& v : w) v = bf16_to_f32(f32_to_bf16(v));
  const std::size_t panels = (static_cast<std::size_t>(out) + kPanel - 1) / kPanel;
  std::vector<float> packed(panels * in * kPanel);
  expect(pack_weight(w.data(), Storage::f32, out, in, packed.data(), storage) == Status::ok, "pack");
  std::vector<float> y(static_cast<std::size_t>(rows) * out), alone(out);
  Weight weight;
  weight.kind = storage == Storage::f32 ? WeightKind::f32 : WeightKind::bf16;
  weight.out = out, weight.in = in, weight.data = packed.data();
  const Weight* weights[] = {&weight};
  float *to[] = {y.data()}, *to_alone[] = {alone.data()};
  for (int threads : {1, 2}) {
    k.linear(x.data(), rows, weights, to, 1, threads);
    for (int r = 0; r < rows; ++r) {
      for (int o = 0; o < out; ++o) {
        double sum = 0.0, size = 0.0;
        for (int i = 0; i < in; ++i) {
          const double term = static_cast<double>(x[static_cast<std::size_t>(r) * in + i]) * w[static_cast<std::size_t>(o) * in + i];
          sum += term;
          size += std::fabs(term);
        }
        const double bound = (in + 1) * 1.2e-7 * size + 1e-30;
        const double error = std::fabs(y[static_cast<std::size_t>(r) * out + o] - sum);
        expect(error <= bound, "error above the bound of its chain", error / bound);
      }
      k.linear(x.data() + static_cast<std::size_t>(r) * in, 1, weights, to_alone, 1, 1);
      expect(std::memcmp(alone.data(), y.data() + static_cast<std::size_t>(r) * out, out * sizeof(float)) == 0,
             "a row alone differs from the row in a batch");
    }
  }
}

struct Blocks {  // lanes of one layer, filled through the write kernel, with shuffled slots
  int heads, dim, index_dim, tokens, block, slots;
  Storage storage;
  std::vector<float> k, v, index, k_lane, v_lane, index_lane, bounds;
  std::vector<std::uint8_t> high, low, scales;
  std::vector<std::uint16_t> centre;
  std::vector<std::int32_t> table;

  Blocks(const Kernels& kernels, Storage s, int heads, int dim, int index_dim, int tokens, int block)
      : heads(heads), dim(dim), index_dim(index_dim), tokens(tokens), block(block),
        slots((tokens + block - 1) / block + 2), storage(s), k(randoms(static_cast<std::size_t>(tokens) * heads * dim, 3)),
        v(randoms(static_cast<std::size_t>(tokens) * heads * dim, 4)), index(randoms(static_cast<std::size_t>(tokens) * index_dim, 5)) {
    if (s == Storage::bf16)
      for (auto* t : {&k, &v, &index})
        for (float& x : *t) x = bf16_to_f32(f32_to_bf16(x));
    const int padded = (dim + 15) / 16 * 16;
    const float poison = std::numeric_limits<float>::quiet_NaN();  // what is never written must never be read
    k_lane.assign(static_cast<std::size_t>(slots) * heads * dim * block, poison);
    v_lane.assign(static_cast<std::size_t>(slots) * heads * block * padded, poison);
    index_lane.assign(static_cast<std::size_t>(slots) * index_dim * block, poison);
    high.assign(static_cast<std::size_t>(slots) * ((index_dim + 7) / 8) * block * 4, 255);
    low = high;
    scales.assign(static_cast<std::size_t>(slots) * block, 255);
    centre.assign(static_cast<std::size_t>(slots) * index_dim, 0x7fc0);
    bounds.assign(static_cast<std::size_t>(slots) * kSketchBounds, poison);
    for (int b = 0; b * block < tokens; ++b) table.push_back(slots - 1 - b);
    std::vector<std::int32_t> slot, offset;
    for (int t = 0; t < tokens; ++t) {
      slot.push_back(table[t / block]);
      offset.push_back(t % block);
    }
    kernels.write({k.data(), v.data(), index.data(), k_lane.data(), v_lane.data(), sketch(), s, slot.data(), slot.data(), offset.data(),
                   tokens, heads, dim, index_dim, block, 2, slots, slots});
  }

  SketchLanes sketch() const {
    return {const_cast<float*>(index_lane.data()), const_cast<std::uint8_t*>(high.data()), const_cast<std::uint8_t*>(low.data()),
            const_cast<std::uint8_t*>(scales.data()), const_cast<std::uint16_t*>(centre.data()), const_cast<float*>(bounds.data())};
  }
};

void test_attention(const Kernels& kernels, Storage storage, int heads, int group, int dim, int total, int queries, int block,
                    int topk) {
  const int index_dim = 24, start = total - queries;
  const Blocks blocks(kernels, storage, heads, dim, index_dim, total, block);
  const auto q = randoms(static_cast<std::size_t>(queries) * heads * group * dim, 6);
  const auto index_q = randoms(static_cast<std::size_t>(queries) * heads * index_dim, 7);
  const std::int32_t row_begin[] = {0, queries};
  const std::int64_t starts[] = {start}, table_begin[] = {0};
  const auto table_size = static_cast<std::int64_t>(blocks.table.size());
  const Spans spans{1, row_begin, starts, blocks.table.data(), table_begin, queries, table_size, blocks.slots};
  std::vector<std::int32_t> ids(static_cast<std::size_t>(queries) * heads * topk);
  std::int64_t work[4] = {};
  current = "select";
  expect(kernels.select({index_q.data(), blocks.sketch(), storage, spans, ids.data(), heads, index_dim, block, topk, 1, 0, 2, work}) == Status::ok, "status");
  for (int i = 0; i < queries; ++i) {
    for (int h = 0; h < heads; ++h) {
      const int position = start + i, local = position / block;
      std::vector<std::pair<double, int>> order;
      for (int b = 0; b <= local; ++b) {
        double best = -1e300;
        for (int j = b * block; j <= position && j < (b + 1) * block; ++j) {
          double dot = 0.0;
          for (int d = 0; d < index_dim; ++d)
            dot += static_cast<double>(index_q[(static_cast<std::size_t>(i) * heads + h) * index_dim + d]) * blocks.index[static_cast<std::size_t>(j) * index_dim + d];
          best = std::max(best, dot);
        }
        order.push_back({b == local ? -1e301 : -best, b});
      }
      std::sort(order.begin(), order.end());
      std::vector<int> wanted;
      for (int c = 0; c < topk && c < static_cast<int>(order.size()); ++c) wanted.push_back(order[c].second);
      std::sort(wanted.begin(), wanted.end());
      wanted.resize(topk, -1);
      for (int c = 0; c < topk; ++c)
        expect(ids[(static_cast<std::size_t>(i) * heads + h) * topk + c] == wanted[c], "another block", c);
    }
  }
  for (const bool dense : {false, true}) {
    current = dense ? "attend, dense" : "attend, sparse";
    std::vector<float> out(q.size()), alone(static_cast<std::size_t>(heads) * group * dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    AttendArgs args{q.data(), out.data(), blocks.k_lane.data(), blocks.v_lane.data(), storage, spans, dense ? nullptr : ids.data(),
                    topk, heads * group, heads, dim, block, scale, 2};
    args.spans.places = 1;
    expect(kernels.attend(args) == Status::bad_spans, "a block without a place in the lanes");
    args.spans = spans;
    args.spans.table_size -= 1;
    expect(kernels.attend(args) == Status::bad_spans, "a block without a place in the table");
    args.spans = spans;
    if (!dense) {
      std::vector<std::int32_t> none = ids;
      none[0] = -1;
      args.block_ids = none.data();
      expect(kernels.attend(args) == Status::bad_block_ids, "a row that ends before it begins");
      args.block_ids = ids.data();
    }
    expect(kernels.attend(args) == Status::ok, "status");
    for (int i = 0; i < queries; ++i) {
      for (int h = 0; h < heads * group; ++h) {
        std::vector<double> weights, sum(dim, 0.0);
        std::vector<int> keys;
        double top = -1e300, mass = 0.0;
        for (int j = 0; j <= start + i; ++j) {
          bool chosen = dense;
          for (int c = 0; c < topk && !chosen; ++c)
            chosen = ids[(static_cast<std::size_t>(i) * heads + h / group) * topk + c] == j / block;
          if (!chosen) continue;
          double dot = 0.0;
          for (int d = 0; d < dim; ++d)
            dot += static_cast<double>(q[(static_cast<std::size_t>(i) * heads * group + h) * dim + d]) * blocks.k[(static_cast<std::size_t>(j) * heads + h / group) * dim + d];
          weights.push_back(dot * scale);
          keys.push_back(j);
          top = std::max(top, weights.back());
        }
        for (std::size_t n = 0; n < keys.size(); ++n) {
          const double p = std::exp(weights[n] - top);
          mass += p;
          for (int d = 0; d < dim; ++d) sum[d] += p * blocks.v[(static_cast<std::size_t>(keys[n]) * heads + h / group) * dim + d];
        }
        for (int d = 0; d < dim; ++d) {
          const double error = std::fabs(out[(static_cast<std::size_t>(i) * heads * group + h) * dim + d] - sum[d] / mass);
          // bf16 storage rounds queries and weights to 8 bits, as every bf16 attention does.
          expect(error < (storage == Storage::f32 ? 2e-5 : 3e-2), "error", error);
        }
      }
      const std::int32_t one[] = {0, 1};
      const std::int64_t at[] = {start + i};
      args.q = q.data() + static_cast<std::size_t>(i) * heads * group * dim;
      args.out = alone.data();
      args.block_ids = dense ? nullptr : ids.data() + static_cast<std::size_t>(i) * heads * topk;
      args.spans = {1, one, at, blocks.table.data(), table_begin, 1, table_size, blocks.slots};
      args.threads = 1;
      kernels.attend(args);
      expect(std::memcmp(alone.data(), out.data() + static_cast<std::size_t>(i) * heads * group * dim, alone.size() * sizeof(float)) == 0,
             "a query alone differs from the query in a chunk", i);
    }
  }
}

void test_small(const Kernels& k) {
  for (const int dim : {1, 7, 16, 64, 100, 576}) {
    current = "rms_norm";
    const auto x = randoms(static_cast<std::size_t>(3) * dim, 8), w = randoms(dim, 9);
    std::vector<float> y(x.size());
    k.rms_norm(x.data(), 3, dim, w.data(), 1e-6f, y.data(), 2);
    for (int r = 0; r < 3; ++r) {
      double squares = 0.0;
      for (int d = 0; d < dim; ++d) squares += static_cast<double>(x[r * dim + d]) * x[r * dim + d];
      for (int d = 0; d < dim; ++d) {
        const double want = x[r * dim + d] / std::sqrt(squares / dim + 1e-6) * w[d];
        expect(std::fabs(y[r * dim + d] - want) <= 1e-5 * std::fabs(want) + 1e-7, "error", y[r * dim + d] - want);
      }
    }
  }
}

// A mixture of networks with int4 or fp32 weights, against double precision.
void test_experts(const Kernels& k, bool coded, Gate gate) {
  current = coded ? "experts of int4" : "experts of fp32";
  constexpr int kRows = 21, kHidden = 72, kWidth = 40, kExperts = 3, kPlaces = 2;
  struct Matrix {
    std::vector<float> values, scales;
    std::vector<std::uint32_t> words;
    std::vector<float> packed;
    Weight weight;
  };
  std::vector<Matrix> matrices(3 * (kExperts + 1));
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    Matrix& m = matrices[i];
    const int out = i % 3 == 2 ? kHidden : kWidth, in = i % 3 == 2 ? kWidth : kHidden;
    m.values = randoms(static_cast<std::size_t>(out) * in, 20 + static_cast<unsigned>(i), 0.3f);
    m.weight.out = out, m.weight.in = in;
    const std::size_t panels = (static_cast<std::size_t>(out) + kPanel - 1) / kPanel;
    if (coded) {
      std::vector<std::uint8_t> codes(m.values.size());
      m.scales.assign(panels * (in / 8) * kPanel, 0.25f);
      for (std::size_t j = 0; j < codes.size(); ++j) {
        codes[j] = static_cast<std::uint8_t>(std::max(0.0f, std::min(15.0f, std::round(m.values[j] * 4.0f) + 8.0f)));
        m.values[j] = (codes[j] - 8.0f) * 0.25f;
      }
      m.words.resize(panels * (in / 8) * kPanel);
      expect(pack_codes(codes.data(), WeightKind::int4, out, in, m.words.data()) == Status::ok, "pack_codes");
      m.weight.kind = WeightKind::int4, m.weight.data = m.words.data(), m.weight.scales = m.scales.data(), m.weight.group = 8;
      for (int c = 0; c < 16; ++c) m.weight.table[c] = static_cast<float>(c - 8);
    } else {
      m.packed.resize(panels * in * kPanel);
      expect(pack_weight(m.values.data(), Storage::f32, out, in, m.packed.data(), Storage::f32) == Status::ok, "pack");
      m.weight.data = m.packed.data();
    }
  }
  std::vector<Mlp> mlps;
  for (std::size_t i = 0; i < matrices.size(); i += 3) mlps.push_back({&matrices[i].weight, &matrices[i + 1].weight, &matrices[i + 2].weight});
  const auto x = randoms(static_cast<std::size_t>(kRows) * kHidden, 12);
  std::vector<std::int32_t> ids;
  std::vector<float> weights, y(x.size());
  for (int r = 0; r < kRows; ++r) {
    ids.push_back(r % 2);
    ids.push_back(2 - r % 2);
    weights.push_back(0.25f);
    weights.push_back(0.75f);
  }
  ExpertsArgs args{x.data(), kRows, kHidden, ids.data(), weights.data(), kPlaces, mlps.data(), kExperts, &mlps[kExperts],
                   2.0f, gate, 1.702f, 7.0f, y.data(), 2};
  expect(k.experts(args) == Status::ok, "experts");
  const auto run = [&](const Matrix* m, const float* row) {
    std::vector<double> middle(kWidth), result(kHidden);
    for (int o = 0; o < kWidth; ++o) {
      double g = 0.0, u = 0.0;
      for (int i = 0; i < kHidden; ++i) {
        g += static_cast<double>(row[i]) * m[0].values[static_cast<std::size_t>(o) * kHidden + i];
        u += static_cast<double>(row[i]) * m[1].values[static_cast<std::size_t>(o) * kHidden + i];
      }
      if (gate == Gate::silu) {
        middle[o] = g / (1.0 + std::exp(-g)) * u;
      } else {
        g = std::min(g, 7.0), u = std::max(-7.0, std::min(u, 7.0));
        middle[o] = (u + 1.0) * g / (1.0 + std::exp(-static_cast<double>(1.702f) * g));
      }
    }
    for (int o = 0; o < kHidden; ++o)
      for (int i = 0; i < kWidth; ++i) result[o] += middle[i] * m[2].values[static_cast<std::size_t>(o) * kWidth + i];
    return result;
  };
  for (int r = 0; r < kRows; ++r) {
    const float* row = x.data() + static_cast<std::size_t>(r) * kHidden;
    std::vector<double> want = run(&matrices[3 * kExperts], row);
    for (int p = 0; p < kPlaces; ++p) {
      const auto part = run(&matrices[3 * static_cast<std::size_t>(ids[r * kPlaces + p])], row);
      for (int d = 0; d < kHidden; ++d) want[d] += 2.0 * weights[r * kPlaces + p] * part[d];
    }
    for (int d = 0; d < kHidden; ++d) {
      const double error = std::fabs(y[static_cast<std::size_t>(r) * kHidden + d] - want[d]);
      expect(error <= 3e-5 * (1.0 + std::fabs(want[d])), "error", error);
    }
  }
  ids[5] = kExperts;
  expect(k.experts(args) == Status::bad_argument, "an expert that does not exist");
}

}  // namespace

int main() {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (!isa_supported(isa)) continue;
    const Kernels& k = kernels(isa);
    for (const Storage s : {Storage::f32, Storage::bf16}) {
      test_linear(k, s, 1, 1, 1);
      test_linear(k, s, 7, 33, 65);
      test_linear(k, s, 13, 600, 130);
      test_attention(k, s, 2, 3, 64, 300, 300, 32, 4);
      test_attention(k, s, 1, 1, 72, 129, 40, 16, 2);
      test_attention(k, s, 2, 8, 128, 700, 33, 128, 3);
      test_attention(k, s, 3, 1, 8, 50, 50, 48, 1);
    }
    test_small(k);
    for (const Gate gate : {Gate::silu, Gate::clamped})
      for (const bool coded : {false, true}) test_experts(k, coded, gate);
  }
  if (failures == 0) std::printf("all kernels agree with double precision on %s\n", "every supported instruction set");
  return failures != 0;
}
