// Times every kernel of one instruction set at MiniMax-M3's shapes, beside what the machine allows in the same run.
// See docs/how-to/measure.md.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "freehold/kernels.h"
#include "limits.h"

using namespace freehold;

namespace {

constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512bf16"};  // by the number of an Isa

struct Options {
  Isa isa = best_isa();
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  int rounds = 7;
  bool quick = false;
};

struct Shapes {  // MiniMax-M3's, and what is taken of them
  int hidden = 6144, expert = 3072, q_heads = 64, kv_heads = 4, head_dim = 128, rotary_half = 32;
  int index_heads = 4, index_dim = 128, block = 128, topk = 16, chunk = 512;
  std::int64_t attend_depth = 8192;
  std::vector<std::int64_t> select_depths = {8192, 131072, 1048576};
};

Shapes quick_shapes() {  // sees whether everything works; nothing else
  Shapes s;
  s.hidden = 192, s.expert = 128, s.q_heads = 8, s.kv_heads = 2, s.index_heads = 2, s.topk = 3, s.chunk = 32;
  s.attend_depth = 1024;
  s.select_depths = {1024, 4096};
  return s;
}

struct Bench {
  Options options;
  Shapes shapes;
  const Kernels& kernels;
  std::size_t cold;  // what decoding reads comes in turn from so many bytes, so that no cache holds it
  Limits limits;
};

// -------------------------------------------------------------------------------------------- memory and data

struct Memory {  // not touched before it is written, so that only what is used is ever real
  explicit Memory(std::size_t nbytes) : p(::operator new(nbytes + 64, std::align_val_t(64))) {}
  ~Memory() { ::operator delete(p, std::align_val_t(64)); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(p);
  }
  void* p;
};

struct Random {  // sums of two uniform numbers, variance 1: the cheapest that looks like activations
  std::uint32_t state = 2463534242u;
  float uniform() {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return static_cast<float>(state >> 8) * (1.0f / 16777216.0f) - 0.5f;
  }
  float next() { return (uniform() + uniform()) * 2.4494897f; }
  std::vector<float> vector(std::size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = next();
    return v;
  }
};

std::size_t element_size(Storage s) { return s == Storage::f32 ? 4 : 2; }
const char* name_of(Storage s) { return s == Storage::f32 ? "f32" : "bf16"; }

void require(Status status, const char* kernel) {
  if (status == Status::ok) return;
  std::fprintf(stderr, "error: the kernel %s refused its arguments\n", kernel);
  std::exit(1);
}

// One layer's blocks: K and V, index keys, or both (heads or index_dim 0: none). What lies in them is the write
// kernel's business; only sizes are known here.
struct Layer {
  Storage storage;
  int heads, dim, index_dim, block;
  std::int64_t slots;
  Memory k, v, keys, high, low, scales, centre, bounds;
  std::vector<std::int32_t> table;  // block -> slot, shuffled as in a cache that has been in use

  Layer(const Shapes& s, Storage storage, std::int64_t tokens, int heads, int index_dim)
      : storage(storage), heads(heads), dim(s.head_dim), index_dim(index_dim), block(s.block), slots(tokens / s.block),
        k(per_token(heads * dim * element_size(storage))), v(per_token(heads * ((dim + 15) / 16 * 16) * element_size(storage))),
        keys(per_token(index_dim * element_size(storage))), high(per_token((index_dim + 7) / 8 * 4)),
        low(per_token((index_dim + 7) / 8 * 4)), scales(per_token(1)), centre(slots * index_dim * sizeof(std::uint16_t)),
        bounds(slots * kSketchBounds * sizeof(float)), table(slots) {
    for (std::int64_t b = 0; b < slots; ++b) table[b] = static_cast<std::int32_t>(b);
    std::shuffle(table.begin(), table.end(), std::mt19937(1));
  }
  std::size_t per_token(std::size_t nbytes) const { return static_cast<std::size_t>(slots) * block * nbytes; }
  SketchLanes sketch() const {
    return {keys.p, high.as<std::uint8_t>(), low.as<std::uint8_t>(), scales.as<std::uint8_t>(), centre.as<std::uint16_t>(),
            bounds.as<float>()};
  }
  std::int64_t tokens() const { return slots * block; }
};

struct Rows {  // new tokens in fp32; index keys of a block lie around a centre of their own
  std::vector<float> k, v, index_k;
  Rows(const Layer& layer, int rows, Random& random)
      : k(random.vector(static_cast<std::size_t>(rows) * layer.heads * layer.dim)), v(random.vector(k.size())),
        index_k(random.vector(static_cast<std::size_t>(rows) * layer.index_dim)) {
    for (int first = 0; first < rows; first += layer.block) {
      const std::vector<float> centre = random.vector(layer.index_dim);
      for (int r = first; r < std::min(rows, first + layer.block); ++r)
        for (int d = 0; d < layer.index_dim; ++d) {
          float& x = index_k[static_cast<std::size_t>(r) * layer.index_dim + d];
          x = 0.7071f * (x + centre[d]);
        }
    }
  }
};

// Stores `rows` tokens from token `first` on.
void write_rows(const Bench& bench, const Layer& layer, const Rows& from, std::int64_t first, int rows) {
  std::vector<std::int32_t> slot(rows), offset(rows);
  for (int r = 0; r < rows; ++r) {
    slot[r] = layer.table[(first + r) / layer.block];
    offset[r] = static_cast<std::int32_t>((first + r) % layer.block);
  }
  WriteArgs args{};
  args.k = layer.heads > 0 ? from.k.data() : nullptr;
  args.v = layer.heads > 0 ? from.v.data() : nullptr;
  args.index_k = layer.index_dim > 0 ? from.index_k.data() : nullptr;
  args.k_lane = layer.k.p;
  args.v_lane = layer.v.p;
  args.sketch = layer.sketch();
  args.storage = layer.storage;
  args.frame = slot.data();
  args.slot = slot.data();
  args.offset = offset.data();
  args.rows = rows;
  args.num_kv_heads = layer.heads;
  args.head_dim = layer.dim;
  args.index_dim = layer.index_dim;
  args.block_tokens = layer.block;
  args.threads = bench.options.threads;
  args.num_frames = args.num_slots = static_cast<int>(layer.table.size());
  require(bench.kernels.write(args), "write");
}

std::unique_ptr<Layer> full_layer(const Bench& bench, Storage storage, std::int64_t tokens, int heads, int index_dim) {
  auto layer = std::make_unique<Layer>(bench.shapes, storage, tokens, heads, index_dim);
  Random random;
  const int step = 8 * layer->block;
  for (std::int64_t first = 0; first < layer->tokens(); first += step) {
    const int rows = static_cast<int>(std::min<std::int64_t>(step, layer->tokens() - first));
    write_rows(bench, *layer, Rows(*layer, rows, random), first, rows);
  }
  return layer;
}

// The last `rows` tokens of one of the sequences, each of `depth` tokens, that share a layer.
struct LastRows {
  std::int32_t row_begin[2];
  std::int64_t start[1], table_begin[1];
  const std::vector<std::int32_t>& table;
  LastRows(const Layer& layer, std::int64_t depth, int rows, std::int64_t sequence)
      : row_begin{0, rows}, start{depth - rows}, table_begin{sequence * (depth / layer.block)}, table(layer.table) {}
  Spans spans() const {
    return {1, row_begin, start, table.data(), table_begin, row_begin[1], static_cast<std::int64_t>(table.size()), static_cast<int>(table.size())};
  }
};

// ------------------------------------------------------------------------------------------------ measuring

struct Case {
  const char* kernel;
  std::string shape, type;
  double operations;  // a multiplication and an addition are two
  Limit computing;    // what limits them
  double nbytes;      // read and written at least
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  const std::size_t half = v.size() / 2;
  return v.size() % 2 != 0 ? v[half] : 0.5 * (v[half - 1] + v[half]);
}

void print_head() {
  std::printf("%-15s %-34s %-5s %12s %10s %10s %-7s %6s\n", "kernel", "shape", "type", "ms", "rate", "limit", "unit", "% of");
}

// Times `run`, each round beside another measurement of what limits it, and prints its line. A round lasts at least
// 20 ms.
template <typename F>
void measure(Bench& bench, const Case& c, F&& run) {
  const auto time = [&](long calls) {
    const double start = seconds_now();
    for (long i = 0; i < calls; ++i) require(run(), c.kernel);
    return (seconds_now() - start) / static_cast<double>(calls);
  };
  long calls = 1;
  const double least = bench.options.quick ? 0.0 : 0.02;
  for (double once = time(1); once * static_cast<double>(calls) < least; once = time(calls))
    calls = std::max(calls + 1, static_cast<long>(least / std::max(once, 1e-8)) + 1);
  Limits& limits = bench.limits;
  const auto least_seconds = [&](double amount, Limit limit) {
    return limits.per_second(limit) > 0.0 ? amount / limits.per_second(limit) : 0.0;
  };
  const bool by_memory = least_seconds(c.nbytes, Limit::read) >= least_seconds(c.operations, c.computing);
  const Limit limit = by_memory ? Limit::read : c.computing;
  std::vector<double> rounds;
  for (int r = 0; r < bench.options.rounds; ++r) {
    limits.sample(limit);
    rounds.push_back(time(calls));
  }
  const double seconds = median(rounds), rate = (by_memory ? c.nbytes : c.operations) / seconds;
  std::printf("%-15s %-34s %-5s %12.4f %10.1f %10.1f %-7s %6.1f\n", c.kernel, c.shape.c_str(), c.type.c_str(), seconds * 1e3,
              rate / 1e9, limits.per_second(limit) / 1e9, by_memory ? "GB/s" : "Gop/s", 100.0 * rate / limits.per_second(limit));
  std::fflush(stdout);
}

std::string depth_text(std::int64_t tokens) {
  if (tokens % 1048576 == 0) return std::to_string(tokens / 1048576) + "M";
  return tokens % 1024 == 0 ? std::to_string(tokens / 1024) + "K" : std::to_string(tokens);
}

std::string rows_at(int rows, std::int64_t depth) {
  return std::to_string(rows) + (rows == 1 ? " row at " : " rows at ") + depth_text(depth);
}

// ------------------------------------------------------------------------------------------------ the kernels

void bench_linear(Bench& bench, Storage storage) {
  const int in = bench.shapes.hidden, out = bench.shapes.expert;
  const std::size_t elements = (static_cast<std::size_t>(out) + kPanel - 1) / kPanel * kPanel * in;
  const std::size_t nbytes = elements * element_size(storage), copies = bench.cold / nbytes + 1;
  Random random;
  const Memory packed(nbytes * copies);
  {
    const std::vector<float> weight = random.vector(static_cast<std::size_t>(out) * in);
    require(pack_weight(weight.data(), Storage::f32, out, in, packed.p, storage), "pack_weight");
  }
  for (std::size_t i = 1; i < copies; ++i) std::memcpy(packed.as<char>() + i * nbytes, packed.p, nbytes);
  for (const int rows : {1, bench.shapes.chunk}) {
    const std::vector<float> x = random.vector(static_cast<std::size_t>(rows) * in);
    std::vector<float> y(static_cast<std::size_t>(rows) * out);
    std::size_t turn = 0;
    const std::string shape = std::to_string(rows) + " x " + std::to_string(in) + " -> " + std::to_string(out);
    // Weights are widened: products are of fp32 numbers with either storage.
    measure(bench, {"linear", shape, name_of(storage), 2.0 * rows * in * out, Limit::f32,
                    static_cast<double>(nbytes) + 4.0 * rows * (in + out)},
            [&] {
              Weight weight;
              weight.kind = storage == Storage::f32 ? WeightKind::f32 : WeightKind::bf16;
              weight.out = out, weight.in = in, weight.data = packed.as<char>() + turn++ % copies * nbytes;
              const Weight* weights[] = {&weight};
              float* to[] = {y.data()};
              return bench.kernels.linear(x.data(), rows, weights, to, 1, bench.options.threads);
            });
  }
}

// (rows, kv_heads, topk) ascending; each row's own block and others at random
std::vector<std::int32_t> random_blocks(const Shapes& s, int rows, std::int64_t depth) {
  std::mt19937 engine(2);
  std::vector<std::int32_t> ids;
  for (int r = 0; r < rows; ++r) {
    const int local = static_cast<int>((depth - rows + r) / s.block);
    std::vector<std::int32_t> before(local);
    for (int b = 0; b < local; ++b) before[b] = b;
    for (int h = 0; h < s.kv_heads; ++h) {
      std::shuffle(before.begin(), before.end(), engine);
      std::vector<std::int32_t> chosen(before.begin(), before.begin() + std::min(s.topk - 1, local));
      chosen.push_back(local);
      std::sort(chosen.begin(), chosen.end());
      chosen.resize(s.topk, -1);
      ids.insert(ids.end(), chosen.begin(), chosen.end());
    }
  }
  return ids;
}

void bench_attend(Bench& bench, Storage storage, const Layer& layer, int rows, bool sparse) {
  const Shapes& s = bench.shapes;
  const std::int64_t depth = s.attend_depth, sequences = layer.tokens() / depth;
  const std::vector<std::int32_t> ids = random_blocks(s, rows, depth);
  Random random;
  const std::vector<float> q = random.vector(static_cast<std::size_t>(rows) * s.q_heads * s.head_dim);
  std::vector<float> out(q.size());
  double pairs = 0.0;  // of a query and a token that it sees, of one head
  for (int r = 0; r < rows; ++r) {
    const std::int64_t position = depth - rows + r, local = position / s.block;
    const std::int64_t blocks = sparse ? std::min<std::int64_t>(local, s.topk - 1) : local;
    pairs += static_cast<double>(blocks * s.block + position % s.block + 1);
  }
  // Of many rows some choose every block; their blocks are read once for all.
  const double tokens = rows == 1 ? pairs : static_cast<double>(depth);
  const bool pairs_of_bf16 = storage == Storage::bf16 && bench.limits.per_second(Limit::bf16) > 0.0;
  std::int64_t turn = 0;
  measure(bench, {sparse ? "attend, sparse" : "attend, dense", rows_at(rows, depth), name_of(storage),
                  4.0 * pairs * s.q_heads * s.head_dim, pairs_of_bf16 ? Limit::bf16 : Limit::f32,
                  tokens * 2.0 * s.kv_heads * s.head_dim * static_cast<double>(element_size(storage)) +
                      8.0 * static_cast<double>(q.size())},
          [&] {
            const LastRows last(layer, depth, rows, turn++ % sequences);
            return bench.kernels.attend({q.data(), out.data(), layer.k.p, layer.v.p, storage, last.spans(),
                                         sparse ? ids.data() : nullptr, s.topk, s.q_heads, s.kv_heads, s.head_dim, s.block,
                                         0.0883883f, bench.options.threads});
          });
}

void bench_attend(Bench& bench, Storage storage) {
  const Shapes& s = bench.shapes;
  const double nbytes = 2.0 * s.kv_heads * s.head_dim * static_cast<double>(element_size(storage)) * static_cast<double>(s.attend_depth);
  const std::int64_t sequences = static_cast<std::int64_t>(static_cast<double>(bench.cold) / nbytes) + 1;
  const auto layer = full_layer(bench, storage, sequences * s.attend_depth, s.kv_heads, 0);
  for (const int rows : {1, s.chunk})
    for (const bool sparse : {false, true}) bench_attend(bench, storage, *layer, rows, sparse);
}

void bench_select(Bench& bench, Storage storage) {
  const Shapes& s = bench.shapes;
  const auto layer = full_layer(bench, storage, s.select_depths.back(), 0, s.index_dim);
  Random random;
  for (const int rows : {1, s.chunk}) {
    const std::vector<float> index_q = random.vector(static_cast<std::size_t>(rows) * s.index_heads * s.index_dim);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows) * s.index_heads * s.topk);
    for (const std::int64_t depth : s.select_depths) {
      std::int64_t turn = 0;
      const double keys = static_cast<double>(depth);
      // One byte and one product for each channel of each key: what a scan of whole codes costs at least.
      measure(bench, {"select", rows_at(rows, depth), name_of(storage), 2.0 * rows * s.index_heads * s.index_dim * keys,
                      Limit::int8, keys * s.index_dim},
              [&] {
                const LastRows last(*layer, depth, rows, turn++ % (layer->tokens() / depth));
                SelectArgs args{};
                args.index_q = index_q.data();
                args.sketch = layer->sketch();
                args.storage = storage;
                args.spans = last.spans();
                args.block_ids = ids.data();
                args.num_index_heads = s.index_heads;
                args.index_dim = s.index_dim;
                args.block_tokens = s.block;
                args.topk = s.topk;
                args.local_blocks = 1;
                args.threads = bench.options.threads;
                return bench.kernels.select(args);
              });
    }
  }
}

void bench_write(Bench& bench, Storage storage) {
  const Shapes& s = bench.shapes;
  const Layer layer(s, storage, 2 * s.attend_depth, s.kv_heads, s.index_dim);
  const double width = 2.0 * s.kv_heads * s.head_dim + s.index_dim;
  Random random;
  for (const int rows : {1, s.chunk}) {
    const Rows from(layer, rows, random);
    std::int64_t first = 0;
    measure(bench, {"write", std::to_string(rows) + (rows == 1 ? " row" : " rows"), name_of(storage), 0.0, Limit::f32,
                    rows * width * (4.0 + static_cast<double>(element_size(storage)))},
            [&] {
              write_rows(bench, layer, from, first, rows);
              first = (first + rows) % layer.tokens();
              return Status::ok;
            });
  }
}

// Norms and rotation: nothing but memory, so their operands are taken in turn from cold memory too.
void bench_small(Bench& bench) {
  const Shapes& s = bench.shapes;
  const int rows = s.chunk, threads = bench.options.threads, heads = s.q_heads;
  const std::size_t widest = static_cast<std::size_t>(rows) * std::max(s.hidden, heads * s.head_dim);
  const std::size_t turns = bench.cold / (widest * sizeof(float)) + 2;
  Random random;
  std::vector<float> x = random.vector(widest);
  x.resize(turns * widest);
  for (std::size_t i = 1; i < turns; ++i) std::copy(x.begin(), x.begin() + widest, x.begin() + i * widest);
  std::vector<float> y(x.size());
  const std::vector<float> weight(static_cast<std::size_t>(s.hidden), 1.0f);
  const std::vector<float> cos(static_cast<std::size_t>(rows) * s.rotary_half, 0.8f), sin(cos.size(), 0.6f);
  std::size_t turn = 0;
  const auto next = [&] { return turn++ % turns * widest; };
  const auto line = [&](const char* name, const std::string& shape, double nbytes, auto&& run) {
    measure(bench, {name, std::to_string(rows) + " x " + shape, "f32", 0.0, Limit::f32, rows * nbytes}, run);
  };
  line("rms_norm", std::to_string(s.hidden), 8.0 * s.hidden, [&] {
    const std::size_t at = next();
    return bench.kernels.rms_norm(x.data() + at, rows, s.hidden, weight.data(), 1e-6f, y.data() + at, threads);
  });
  line("rope", std::to_string(heads) + " x " + std::to_string(s.head_dim), 8.0 * heads * 2 * s.rotary_half,
       [&] { return bench.kernels.rope(x.data() + next(), rows, heads, s.head_dim, s.rotary_half, cos.data(), sin.data()); });
}

// ------------------------------------------------------------------------------------------------------- main

constexpr const char* kUsage =
    "usage: bench_kernels [--isa NAME] [--threads N] [--rounds N] [--quick]\n"
    "  --isa NAME    portable, avx2, avx512 or avx512bf16; the best one that the processor runs unless given\n"
    "  --threads N   as many as the processor has unless given\n"
    "  --rounds N    the times in the table are medians of N rounds of at least 20 ms; 7 unless given\n"
    "  --quick       small shapes and no least time: shows whether it works, its figures mean nothing\n";

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "error: %s\n%s", why.c_str(), kUsage);
  std::exit(2);
}

Isa isa_named(const std::string& name) {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (name != kIsaNames[static_cast<int>(isa)]) continue;
    if (!isa_supported(isa)) refuse("this processor cannot run " + name);
    return isa;
  }
  refuse("the instruction set '" + name + "' is unknown");
}

int count_of(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const long n = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || n < 1 || n > 4096) refuse(option + " is '" + text + "'; it must be from 1 to 4096");
  return static_cast<int>(n);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help") {
      std::printf("%s", kUsage);
      std::exit(0);
    }
    if (name == "--quick") {
      options.quick = true;
      continue;
    }
    if (name != "--isa" && name != "--threads" && name != "--rounds") refuse("the option '" + name + "' is unknown");
    if (i + 1 == argc) refuse(name + " needs a value");
    const std::string value = argv[++i];
    if (name == "--isa") options.isa = isa_named(value);
    if (name == "--threads") options.threads = count_of(name, value);
    if (name == "--rounds") options.rounds = count_of(name, value);
  }
  return options;
}

std::size_t cold_nbytes(const Options& options) {
  if (options.quick) return std::size_t{1} << 20;
  std::size_t last_level_kib = 0;  // stays 0 where the system does not tell
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> last_level_kib;
  return std::max(std::size_t{512} << 20, (last_level_kib << 10) * 8);
}

Bench prepare(const Options& options) {
  const std::size_t cold = cold_nbytes(options);
  Bench bench{options, options.quick ? quick_shapes() : Shapes{}, kernels(options.isa), cold,
              Limits(options.isa, options.threads, cold, options.quick ? 1000 : 2000000)};
  for (int t = 0; t < options.rounds; ++t)
    for (const Limit limit : {Limit::read, Limit::f32, Limit::bf16, Limit::int8}) bench.limits.sample(limit);
  const auto giga = [&](Limit limit) { return bench.limits.per_second(limit) / 1e9; };
  std::printf("%s, %d thread%s, medians of %d rounds\n", kIsaNames[static_cast<int>(options.isa)], options.threads,
              options.threads == 1 ? "" : "s", options.rounds);
  std::printf("limits: reads %.1f GB/s (a sum over %zu MiB), fp32 %.0f Gop/s", giga(Limit::read), cold >> 20, giga(Limit::f32));
  if (giga(Limit::bf16) > 0.0) std::printf(", bf16 pairs %.0f Gop/s", giga(Limit::bf16));
  if (giga(Limit::int8) > 0.0) std::printf(", int8 VNNI %.0f Gop/s", giga(Limit::int8));
  std::printf("\n\n");
  return bench;
}

}  // namespace

int main(int argc, char** argv) {
  Bench bench = prepare(parse(argc, argv));
  print_head();
  for (const Storage s : {Storage::f32, Storage::bf16}) bench_linear(bench, s);
  for (const Storage s : {Storage::f32, Storage::bf16}) bench_attend(bench, s);
  bench_select(bench, Storage::bf16);
  for (const Storage s : {Storage::f32, Storage::bf16}) bench_write(bench, s);
  bench_small(bench);
}
