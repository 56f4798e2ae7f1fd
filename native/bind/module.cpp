// Python binding: addresses and sizes in, a status out. Shapes are checked once, in src/freehold/kernels.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <memory>
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
  if (status == Status::bad_block_ids)
    throw std::invalid_argument("block_ids must ascend in each row from a first block, then be -1 alone, and name no block after the query's own");
  if (status == Status::bad_spans)
    throw std::invalid_argument("the spans name places that the lanes do not have, or do not name a place for each block and row");
  if (status == Status::out_of_memory) throw std::bad_alloc();
}

Spans spans_at(int num, Address row_begin, Address start, Address blocks, Address table_begin, int rows, std::int64_t table_size,
               int places) {
  return {num, at<const std::int32_t>(row_begin), at<const std::int64_t>(start), at<const std::int32_t>(blocks),
          at<const std::int64_t>(table_begin), rows, table_size, places};
}

SketchLanes sketch_at(Address keys, Address high, Address low, Address scales, Address centre, Address bounds) {
  return {at<void>(keys), at<std::uint8_t>(high), at<std::uint8_t>(low), at<std::uint8_t>(scales), at<std::uint16_t>(centre),
          at<float>(bounds)};
}

// Selection, then attention over what was chosen. Where every row chooses all that it sees, attention need not be told: it
// gives the same bits, and sooner.
void sparse(const SelectArgs& choice, AttendArgs attention) {
  check(table->select(choice));
  const Spans& spans = choice.spans;
  for (int s = 0; s < spans.num; ++s) {
    const std::int64_t end = spans.start[s] + spans.row_begin[s + 1] - spans.row_begin[s];
    if ((end + choice.block_tokens - 1) / choice.block_tokens <= choice.topk) continue;
    attention.block_ids = choice.block_ids;
    attention.topk = choice.topk;
  }
  check(table->attend(attention));
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

struct IndexBranch {  // what a sparse layer chooses its blocks by; one head for each KV head
  Weight q, k;
  std::array<const float*, 2> norms;  // of q and k (dim), or nullptr
  int dim, topk, local_blocks, init_blocks;
};

struct LaneSet {  // of one layer
  void *k, *v;
  SketchLanes sketch;
  Storage storage;
  int block_tokens, num_frames, num_slots;
};

struct Rows {  // of one step
  int num;
  const float *cos, *sin;  // (num, half)
  int half;
  Spans spans;
  const std::int32_t *frame, *slot, *offset;
};

// A whole layer: h += attention(norm(h)); h += network(norm(h)). The kernels are those that are also called one by one;
// together they spare the caller what a call costs, which for one row is much.
struct FusedLayer {
  std::array<Weight, 4> attention;  // q, k, v, o
  std::array<Weight, 3> network;    // gate, up, down
  std::array<const float*, 4> norms;  // before attention and network (hidden); of q and k (head_dim), or nullptr
  float eps, scale;
  int num_q_heads, num_kv_heads, head_dim;
  Gate gate;
  float alpha, limit;
  std::vector<IndexBranch> index{};  // one or none

  // block_ids: (rows, num_kv_heads, topk), written and then read; nullptr: every block is read.
  void run(float* h, const Rows& r, const LaneSet& lanes, std::int32_t* block_ids, int threads) const {
    const IndexBranch* branch = index.empty() ? nullptr : &index[0];
    const int rows = r.num, hidden = attention[0].in, D = head_dim, Hq = num_q_heads, Hkv = num_kv_heads, Di = branch ? branch->dim : 0;
    const std::size_t n = static_cast<std::size_t>(rows), wide = n * Hq * D, narrow = n * Hkv * D, whole = n * hidden;
    const std::unique_ptr<float[]> room(new float[2 * whole + 2 * wide + 2 * narrow + n * (Hkv + 1) * Di]);
    float *x = room.get(), *y = x + whole, *q = y + whole, *out = q + wide, *k = out + wide, *v = k + narrow;
    float *index_q = v + narrow, *index_k = index_q + n * Hkv * Di;
    const auto add = [&] {
      for (std::size_t i = 0; i < whole; ++i) h[i] += y[i];
    };
    const auto turn = [&](float* heads, int count, int dim, const float* norm) {
      if (norm != nullptr) check(table->rms_norm(heads, rows * count, dim, norm, eps, heads, threads));
      check(table->rope(heads, rows, count, dim, r.half, r.cos, r.sin));
    };
    check(table->rms_norm(h, rows, hidden, norms[0], eps, x, threads));
    const std::array<const Weight*, 5> from{&attention[0], &attention[1], &attention[2], branch ? &branch->q : nullptr, branch ? &branch->k : nullptr};
    const std::array<float*, 5> to{q, k, v, index_q, index_k};
    check(table->linear(x, rows, from.data(), to.data(), branch ? 5 : 3, threads));
    turn(q, Hq, D, norms[2]);
    turn(k, Hkv, D, norms[3]);
    if (branch) turn(index_q, Hkv, Di, branch->norms[0]);
    if (branch) turn(index_k, 1, Di, branch->norms[1]);
    check(table->write({k, v, branch ? index_k : nullptr, lanes.k, lanes.v, lanes.sketch, lanes.storage, r.frame, r.slot, r.offset, rows, Hkv,
                        D, Di, lanes.block_tokens, threads, lanes.num_frames, lanes.num_slots}));
    const AttendArgs every{q, out, lanes.k, lanes.v, lanes.storage, r.spans, nullptr, 0, Hq, Hkv, D, lanes.block_tokens, scale, threads};
    if (block_ids == nullptr) {
      check(table->attend(every));
    } else {
      sparse({index_q, lanes.sketch, lanes.storage, r.spans, block_ids, Hkv, Di, lanes.block_tokens, branch->topk, branch->local_blocks,
              branch->init_blocks, threads, nullptr}, every);
    }
    const Weight* o = &attention[3];
    check(table->linear(out, rows, &o, &y, 1, threads));
    add();
    check(table->rms_norm(h, rows, hidden, norms[1], eps, x, threads));
    const Mlp mlp{&network[0], &network[1], &network[2]};
    check(table->experts({x, rows, hidden, nullptr, nullptr, 0, nullptr, 0, &mlp, 1.0f, gate, alpha, limit, y, threads}));
    add();
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
                          const std::vector<float>& values, Address bias, bool coded_inputs) {
        new (w) Weight{WeightKind(kind), out, in, at<const void>(data), at<const float>(scales), at<const float>(offsets), group, {}, at<const float>(bias), false};
        if (values.size() > 16) throw std::invalid_argument("a table has at most 16 values");
        std::copy(values.begin(), values.end(), w->table);
        w->coded_inputs = coded_inputs && takes_coded_inputs(*w);
      })
      .def_ro("coded_inputs", &Weight::coded_inputs);
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
                     Address start, Address blocks, Address table_begin, int span_rows, std::int64_t table_size, int places,
                     Address block_ids, int topk, int num_q_heads,
                     int num_kv_heads, int head_dim, int block_tokens, float scale, int threads, Address carried,
                     int block_begin, int block_end, bool first, bool last, Address lse) {
    check(table->attend({at<const float>(q), at<float>(out), at<const void>(k), at<const void>(v), Storage(storage),
                         spans_at(num_spans, row_begin, start, blocks, table_begin, span_rows, table_size, places), at<const std::int32_t>(block_ids),
                         topk, num_q_heads, num_kv_heads, head_dim, block_tokens, scale, threads, at<float>(carried),
                         block_begin, block_end, first, last, at<float>(lse)}));
  }, release);
  m.def("attend_backward", [](Address q, Address k, Address v, Address out, Address grad, Address lse, Address dq, Address dk,
                              Address dv, int storage, Address block_ids, int topk, std::int64_t query_start, int total_q,
                              int total_k, int num_q_heads, int num_kv_heads, int head_dim, int block_tokens, float scale, int threads) {
    check(table->attend_backward({at<const void>(q), at<const void>(k), at<const void>(v), at<const float>(out), at<const float>(grad),
                                  at<const float>(lse), at<void>(dq), at<void>(dk), at<void>(dv), Storage(storage),
                                  at<const std::int32_t>(block_ids), topk, query_start, total_q, total_k, num_q_heads, num_kv_heads,
                                  head_dim, block_tokens, scale, threads}));
  }, release);
  m.def("select", [](Address index_q, Address keys, Address high, Address low, Address scales,
                     Address centre, Address bounds, int storage, int num_spans, Address row_begin,
                     Address start, Address blocks, Address table_begin, int span_rows, std::int64_t table_size, int places,
                     Address block_ids, int num_index_heads,
                     int index_dim, int block_tokens, int topk, int local_blocks, int init_blocks, int threads) {
    std::array<std::int64_t, 4> work{};
    {
      nb::gil_scoped_release unlocked;
      check(table->select({at<const float>(index_q), sketch_at(keys, high, low, scales, centre, bounds), Storage(storage),
                           spans_at(num_spans, row_begin, start, blocks, table_begin, span_rows, table_size, places), at<std::int32_t>(block_ids),
                           num_index_heads, index_dim, block_tokens, topk, local_blocks, init_blocks, threads, work.data()}));
    }
    return std::make_tuple(work[0], work[1], work[2], work[3]);
  });
  // Selection and attention in one call, for the short steps of decoding.
  m.def("sparse", [](Address index_q, Address keys, Address high, Address low, Address scales, Address centre, Address bounds,
                     Address q, Address out, Address k, Address v, int storage, int num_spans, Address row_begin, Address start,
                     Address blocks, Address table_begin, int span_rows, std::int64_t table_size, int places, Address block_ids,
                     int num_q_heads, int num_kv_heads, int head_dim,
                     int index_dim, int block_tokens, int topk, int local_blocks, int init_blocks, float scale, int threads) {
    const Spans spans = spans_at(num_spans, row_begin, start, blocks, table_begin, span_rows, table_size, places);
    sparse({at<const float>(index_q), sketch_at(keys, high, low, scales, centre, bounds), Storage(storage), spans,
            at<std::int32_t>(block_ids), num_kv_heads, index_dim, block_tokens, topk, local_blocks, init_blocks, threads, nullptr},
           {at<const float>(q), at<float>(out), at<const void>(k), at<const void>(v), Storage(storage), spans, nullptr, 0,
            num_q_heads, num_kv_heads, head_dim, block_tokens, scale, threads});
  }, release);
  m.def("write", [](Address k, Address v, Address index_k, Address k_lane, Address v_lane, Address keys,
                    Address high, Address low, Address scales, Address centre, Address bounds, int storage, Address frame, Address slot, Address offset, int rows,
                    int num_kv_heads, int head_dim, int index_dim, int block_tokens, int threads, int num_frames, int num_slots) {
    check(table->write({at<const float>(k), at<const float>(v), at<const float>(index_k), at<void>(k_lane),
                        at<void>(v_lane), sketch_at(keys, high, low, scales, centre, bounds), Storage(storage),
                        at<const std::int32_t>(frame), at<const std::int32_t>(slot), at<const std::int32_t>(offset), rows, num_kv_heads, head_dim,
                        index_dim, block_tokens, threads, num_frames, num_slots}));
  }, release);
  nb::class_<FusedLayer>(m, "FusedLayer")
      .def("__init__", [](FusedLayer* layer, const std::vector<const Weight*>& attention, const std::vector<const Weight*>& network,
                          const std::vector<Address>& norms, float eps, float scale, int num_q_heads, int num_kv_heads, int head_dim,
                          int gate, float alpha, float limit) {
        if (attention.size() != 4 || network.size() != 3 || norms.size() != 4) throw std::invalid_argument("a layer has 4 + 3 weights and 4 norms");
        new (layer) FusedLayer{{*attention[0], *attention[1], *attention[2], *attention[3]}, {*network[0], *network[1], *network[2]},
                               {at<const float>(norms[0]), at<const float>(norms[1]), at<const float>(norms[2]), at<const float>(norms[3])},
                               eps, scale, num_q_heads, num_kv_heads, head_dim, Gate(gate), alpha, limit};
      })
      .def("set_index", [](FusedLayer& layer, const Weight& q, const Weight& k, Address q_norm, Address k_norm, int index_dim, int topk,
                           int local_blocks, int init_blocks) {
        layer.index = {{q, k, {at<const float>(q_norm), at<const float>(k_norm)}, index_dim, topk, local_blocks, init_blocks}};
      })
      .def("run", [](const FusedLayer& layer, Address h, int rows, Address cos, Address sin, int half, Address k_lane, Address v_lane,
                     Address keys, Address high, Address low, Address scales, Address centre, Address bounds, int storage, int num_spans,
                     Address row_begin, Address start, Address blocks, Address table_begin, int span_rows, std::int64_t table_size, int places,
                     Address frame, Address slot, Address offset, int block_tokens, Address block_ids, int threads, int num_frames, int num_slots) {
        layer.run(at<float>(h), {rows, at<const float>(cos), at<const float>(sin), half,
                                 spans_at(num_spans, row_begin, start, blocks, table_begin, span_rows, table_size, places), at<const std::int32_t>(frame), at<const std::int32_t>(slot), at<const std::int32_t>(offset)},
                  {at<void>(k_lane), at<void>(v_lane), sketch_at(keys, high, low, scales, centre, bounds), Storage(storage), block_tokens,
                   num_frames, num_slots},
                  at<std::int32_t>(block_ids), threads);
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
