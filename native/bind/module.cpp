// Python binding: addresses and sizes in, a status out. Shapes are checked once, in src/freehold/kernels.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "freehold/kernels.h"

namespace nb = nanobind;
using namespace freehold;
using Address = std::uintptr_t;

namespace {

const Kernels* table = nullptr;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(Status status) {
  if (status == Status::bad_argument) throw std::invalid_argument("the native kernel refused its arguments");
  if (status == Status::out_of_memory) throw std::bad_alloc();
}

Spans spans_at(int num, Address row_begin, Address start, Address blocks, Address table_begin) {
  return {num, at<const std::int32_t>(row_begin), at<const std::int64_t>(start), at<const std::int32_t>(blocks),
          at<const std::int64_t>(table_begin)};
}

SketchLanes sketch_at(Address keys, Address high, Address low, Address scales, Address centre, Address bounds) {
  return {at<void>(keys), at<std::uint8_t>(high), at<std::uint8_t>(low), at<std::uint8_t>(scales), at<std::uint16_t>(centre),
          at<float>(bounds)};
}

const char* name_of(Isa isa) {
  return isa == Isa::avx512bf16 ? "avx512bf16" : isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

bool use_isa(const std::string& name) {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (name == name_of(isa) && isa_supported(isa)) {
      table = &kernels(isa);
      return true;
    }
  }
  return false;
}

struct ExpertSet {  // gated networks, of which those that are used must have been set
  std::vector<std::array<Weight, 3>> parts;
  explicit ExpertSet(int count) : parts(static_cast<std::size_t>(count)) {}
  std::vector<Mlp> mlps() const {
    std::vector<Mlp> all;
    for (const auto& part : parts) all.push_back({&part[0], &part[1], &part[2]});
    return all;
  }
};

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // what a model holds when the interpreter ends is no leak
  table = &kernels(best_isa());
  const auto release = nb::call_guard<nb::gil_scoped_release>();

  m.def("isa", [] { return std::string(name_of(table->isa)); });
  m.def("use_isa", &use_isa);
  m.def("pack_weight", [](Address w, int from, int out, int in, Address packed, int to) {
    check(pack_weight(at<const void>(w), Storage(from), out, in, at<void>(packed), Storage(to)));
  }, release);
  m.def("pack_codes", [](Address codes, int kind, int out, int in, Address packed) {
    check(pack_codes(at<const std::uint8_t>(codes), WeightKind(kind), out, in, at<std::uint32_t>(packed)));
  }, release);
  m.def("unpack_rows", [](const Weight& weight, Address rows, int n, Address to) {
    check(unpack_rows(weight, at<const std::int64_t>(rows), n, at<float>(to)));
  }, release);
  m.def("encode", [](Address x, int rows, int in, int kind, Address to, Address errors, int threads) {
    check(table->encode(at<const float>(x), rows, in, BlockKind(kind), at<std::uint8_t>(to), at<double>(errors), threads));
  }, release);
  // Addresses; whoever makes it keeps the memory.
  nb::class_<Weight>(m, "Weight")
      .def("__init__", [](Weight* w, int kind, int out, int in, Address data, Address scales, Address offsets, int group,
                          const std::vector<float>& values, Address bias) {
        new (w) Weight{WeightKind(kind), out, in, at<const void>(data), at<const float>(scales), at<const float>(offsets), group, {}, at<const float>(bias)};
        if (values.size() > 16) throw std::invalid_argument("a table has at most 16 values");
        std::copy(values.begin(), values.end(), w->table);
      });
  nb::class_<ExpertSet>(m, "ExpertSet")
      .def(nb::init<int>())
      .def("set", [](ExpertSet& set, int expert, const Weight& gate, const Weight& up, const Weight& down) {
        set.parts.at(expert) = {gate, up, down};
      });
  m.def("linear", [](Address x, int rows, const std::vector<const Weight*>& weights, const std::vector<Address>& y, int threads) {
    std::vector<float*> outputs;
    for (const Address address : y) outputs.push_back(at<float>(address));
    nb::gil_scoped_release unlocked;
    check(table->linear(at<const float>(x), rows, weights.data(), outputs.data(), static_cast<int>(weights.size()), threads));
  });
  m.def("experts", [](Address x, int rows, int hidden, Address ids, Address weights, int topk, const ExpertSet& routed,
                      const ExpertSet& shared, float scale, int gate, float alpha, float limit, Address y, int threads,
                      Address wanted, Address results, bool first, bool last) {
    nb::gil_scoped_release unlocked;
    const std::vector<Mlp> experts = routed.mlps(), one = shared.mlps();
    check(table->experts({at<const float>(x), rows, hidden, at<const std::int32_t>(ids), at<const float>(weights), topk,
                          experts.data(), static_cast<int>(experts.size()), one.empty() ? nullptr : one.data(), scale,
                          Gate(gate), alpha, limit, at<float>(y), threads, at<const std::uint8_t>(wanted),
                          at<float>(results), first, last}));
  });
  m.def("attend", [](Address q, Address out, Address k, Address v, int storage, int num_spans, Address row_begin,
                     Address start, Address blocks, Address table_begin, Address block_ids, int topk, int num_q_heads,
                     int num_kv_heads, int head_dim, int block_tokens, float scale, int threads, Address carried,
                     int block_begin, int block_end, bool first, bool last) {
    check(table->attend({at<const float>(q), at<float>(out), at<const void>(k), at<const void>(v), Storage(storage),
                         spans_at(num_spans, row_begin, start, blocks, table_begin), at<const std::int32_t>(block_ids),
                         topk, num_q_heads, num_kv_heads, head_dim, block_tokens, scale, threads, at<float>(carried),
                         block_begin, block_end, first, last}));
  }, release);
  m.def("select", [](Address index_q, Address keys, Address high, Address low, Address scales,
                     Address centre, Address bounds, int storage, int num_spans, Address row_begin,
                     Address start, Address blocks, Address table_begin, Address block_ids, int num_index_heads,
                     int index_dim, int block_tokens, int topk, int local_blocks, int init_blocks, int threads) {
    std::array<std::int64_t, 4> work{};
    {
      nb::gil_scoped_release unlocked;
      check(table->select({at<const float>(index_q), sketch_at(keys, high, low, scales, centre, bounds), Storage(storage),
                           spans_at(num_spans, row_begin, start, blocks, table_begin), at<std::int32_t>(block_ids),
                           num_index_heads, index_dim, block_tokens, topk, local_blocks, init_blocks, threads, work.data()}));
    }
    return std::make_tuple(work[0], work[1], work[2], work[3]);
  });
  // Selection and attention in one call, for the short steps of decoding.
  m.def("sparse", [](Address index_q, Address keys, Address high, Address low, Address scales, Address centre, Address bounds,
                     Address q, Address out, Address k, Address v, int storage, int num_spans, Address row_begin, Address start,
                     Address blocks, Address table_begin, Address block_ids, int num_q_heads, int num_kv_heads, int head_dim,
                     int index_dim, int block_tokens, int topk, int local_blocks, int init_blocks, float scale, int threads) {
    const Spans spans = spans_at(num_spans, row_begin, start, blocks, table_begin);
    check(table->select({at<const float>(index_q), sketch_at(keys, high, low, scales, centre, bounds), Storage(storage), spans,
                         at<std::int32_t>(block_ids), num_kv_heads, index_dim, block_tokens, topk, local_blocks, init_blocks,
                         threads, nullptr}));
    check(table->attend({at<const float>(q), at<float>(out), at<const void>(k), at<const void>(v), Storage(storage), spans,
                         at<const std::int32_t>(block_ids), topk, num_q_heads, num_kv_heads, head_dim, block_tokens, scale,
                         threads}));
  }, release);
  m.def("write", [](Address k, Address v, Address index_k, Address k_lane, Address v_lane, Address keys,
                    Address high, Address low, Address scales, Address centre, Address bounds, int storage, Address frame, Address slot, Address offset, int rows,
                    int num_kv_heads, int head_dim, int index_dim, int block_tokens, int threads) {
    check(table->write({at<const float>(k), at<const float>(v), at<const float>(index_k), at<void>(k_lane),
                        at<void>(v_lane), sketch_at(keys, high, low, scales, centre, bounds), Storage(storage),
                        at<const std::int32_t>(frame), at<const std::int32_t>(slot), at<const std::int32_t>(offset), rows, num_kv_heads, head_dim,
                        index_dim, block_tokens, threads}));
  }, release);
  m.def("rms_norm", [](Address x, int rows, int dim, Address weight, float eps, Address y, int threads) {
    check(table->rms_norm(at<const float>(x), rows, dim, at<const float>(weight), eps, at<float>(y), threads));
  }, release);
  m.def("rope", [](Address x, int rows, int heads, int head_dim, int half, Address cos, Address sin) {
    check(table->rope(at<float>(x), rows, heads, head_dim, half, at<const float>(cos), at<const float>(sin)));
  }, release);
  m.def("rope_table", [](Address positions, int rows, Address inv_freq, int half, float scale, Address cos, Address sin) {
    check(rope_table(at<const std::int64_t>(positions), rows, at<const float>(inv_freq), half, scale, at<float>(cos), at<float>(sin)));
  }, release);
  m.def("route_sigmoid", [](Address logits, int rows, int experts, Address bias, int topk, Address ids, Address weights) {
    check(route_sigmoid(at<const float>(logits), rows, experts, at<const float>(bias), topk, at<std::int32_t>(ids), at<float>(weights)));
  }, release);
}
