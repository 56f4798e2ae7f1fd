// Python binding: addresses and sizes in, a status out. Shapes are checked once, in src/freehold/kernels.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <stdexcept>
#include <string>

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

}  // namespace

NB_MODULE(_native, m) {
  table = &kernels(best_isa());
  const auto release = nb::call_guard<nb::gil_scoped_release>();

  m.def("isa", [] { return std::string(name_of(table->isa)); });
  m.def("use_isa", &use_isa);
  m.def("pack_weight", [](Address w, int from, int out, int in, Address packed, int to) {
    check(pack_weight(at<const void>(w), Storage(from), out, in, at<void>(packed), Storage(to)));
  }, release);
  m.def("linear", [](Address x, int rows, int in, Address packed, int storage, int out, Address y, int threads) {
    check(table->linear(at<const float>(x), rows, in, at<const void>(packed), Storage(storage), out, at<float>(y), threads));
  }, release);
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
  m.def("silu_mul", [](Address gate, Address up, std::size_t n, Address y, int threads) {
    check(table->silu_mul(at<const float>(gate), at<const float>(up), n, at<float>(y), threads));
  }, release);
  m.def("swiglu_clamped", [](Address gate, Address up, std::size_t n, float alpha, float limit, Address y, int threads) {
    check(table->swiglu_clamped(at<const float>(gate), at<const float>(up), n, alpha, limit, at<float>(y), threads));
  }, release);
  m.def("route_sigmoid", [](Address logits, int rows, int experts, Address bias, int topk, Address ids, Address weights) {
    check(route_sigmoid(at<const float>(logits), rows, experts, at<const float>(bias), topk, at<std::int32_t>(ids), at<float>(weights)));
  }, release);
}
