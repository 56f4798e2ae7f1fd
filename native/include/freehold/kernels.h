// The kernels of Freehold: plain C++ functions over raw pointers. No framework, no allocation that outlives
// a call, no exception: every function returns a Status. Callers validate shapes once (src/freehold/kernels).
//
// Reduction order. Every dot product is one chain of fused multiply-adds over ascending k, held in one vector
// lane; nothing is ever summed across lanes whose number depends on the call. (In fp32 attention a chain ends after 64
// steps; the chains of a block are added up in ascending order, and those of blocks of fewer than 128 tokens before they
// join the sum over all: that errs less.) So an output element has the same bits whatever the number of rows beside it,
// the chunk it came in, and the number of threads. (Attention weighs tokens of a block that a row does not see with zeros:
// if their values are not finite, the row is not, either. avx512bf16 takes subnormal bf16 numbers for zero.)
//
// Layouts (B = block_tokens, a multiple of 16; P = head_dim rounded up to 16):
//   packed weight  see Weight
//   K lane, fp32   (num_slots, num_kv_heads, head_dim, B)        transposed, so that a lane is a token
//   K lane, bf16   (num_slots, num_kv_heads, head_dim / 2, B, 2) the same, in pairs of channels
//   V lane, fp32   (num_slots, num_kv_heads, B, P)               a lane is a channel
//   V lane, bf16   (num_slots, num_kv_heads, B / 2, P, 2)        the same, in pairs of tokens
//   index keys     (num_slots, B, index_dim)                     as they are: what selection is exact about
//   sketch         see SketchLanes: derived from the index keys of full blocks
#pragma once
#include <cstddef>
#include <cstdint>

namespace freehold {

enum class Status : int { ok = 0, bad_argument = 1, out_of_memory = 2, bad_block_ids = 3, bad_spans = 4 };
enum class Storage : int { f32 = 0, bf16 = 1 };
// avx512bf16 has VNNI and BF16 besides.
enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

constexpr int kPanel = 64;  // outputs in one panel of a packed weight

enum class WeightKind : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3, f16 = 4 };

// A packed (out, in) matrix: panels of 64 outputs, the input index slow; lanes of outputs beyond `out` are zero.
//   f32, bf16, f16  (panels, in, 64) numbers
//   int8        (panels, in / 4, 64) words of four signed codes, the first in the low byte
//   int4        (panels, in / 8, 64) words of eight codes: the first four in the low halves of the bytes, then the others
// A code stands for scale * value + offset; the value of an int8 code is the code itself, of an int4 code `table[code]`.
// Where there are offsets, scale * value must be exact in fp32, so that one rounding is all there is. Products are those
// of the fp32 matrix that the codes stand for, bit for bit; with coded_inputs, those of inputs that are rounded to codes of
// 8 bits, with a scale for 32 of them (integer.inc).
struct Weight {
  WeightKind kind = WeightKind::f32;
  int out = 0, in = 0;
  const void* data = nullptr;
  const float* scales = nullptr;   // (panels, in / group, 64)
  const float* offsets = nullptr;  // the same, or nullptr: zero
  int group = 0;                   // inputs that share a scale: a multiple of 8 that divides `in`
  float table[16] = {};
  const float* bias = nullptr;     // (out), added last; or nullptr
  bool coded_inputs = false;       // only where `takes_coded_inputs`
};

// Whether the values of the codes are small integers, or such over 2 or 4: then products can be sums of integers.
bool takes_coded_inputs(const Weight&);

enum class BlockKind : int { q8_0 = 0, q4_1 = 1 };  // GGML's blocks of 32 elements: 34 and 20 bytes

enum class Gate : int { silu = 0, clamped = 1 };

struct Mlp {  // down(gate(gate x, up x))
  const Weight *gate, *up, *down;
};

// y = routed_scale * sum over places of weights * experts[ids](x) + shared(x), experts in ascending order of place.
struct ExpertsArgs {
  const float* x;  // (rows, hidden)
  int rows, hidden;
  const std::int32_t* ids;  // (rows, topk), each in [0, num_experts)
  const float* weights;     // (rows, topk)
  int topk;                 // 0: `shared` alone
  const Mlp* experts;       // those that `ids` does not name need not be there
  int num_experts;
  const Mlp* shared;        // or nullptr
  float routed_scale;
  // silu: g * sigmoid(g) * u. clamped: g = min(g, limit), u = clamp(u, -limit, limit); (u + 1) * g * sigmoid(alpha * g)
  Gate gate;
  float alpha, limit;
  float* y;  // (rows, hidden)
  int threads;
  // Several calls may share the work, each with experts of its own; the bits are those of one call. wanted (num_experts):
  // those of this call; nullptr: all. results (rows, topk and one for `shared`, hidden): kept between them; or nullptr.
  // The first call computes `shared`, the last one y.
  const std::uint8_t* wanted = nullptr;
  float* results = nullptr;
  bool first = true, last = true;
};

// Sequences of a call. The kernels refuse (bad_spans) rows that are not `rows` in all, and blocks without a place in the
// table or in the lanes. Sequence s owns rows [row_begin[s], row_begin[s + 1]) of the packed query axis, its first
// row stands at position start[s], and its block b lies in slot table[table_begin[s] + b].
struct Spans {
  int num;
  const std::int32_t* row_begin;    // (num + 1)
  const std::int64_t* start;        // (num)
  const std::int32_t* table;
  const std::int64_t* table_begin;  // (num)
  int rows;
  std::int64_t table_size;
  int places;  // slots or frames of the lanes, of which the table names some
};

struct AttendArgs {
  const float* q;  // (total_q, num_q_heads, head_dim)
  float* out;      // the same shape
  const void* k;
  const void* v;
  Storage storage;
  Spans spans;
  const std::int32_t* block_ids;  // (total_q, num_kv_heads, topk) ascending, -1 tail; nullptr: every causal block
  int topk;
  int num_q_heads, num_kv_heads, head_dim, block_tokens;
  float scale;
  int threads;
  // Attention in several calls over ascending ranges of blocks, with the same bits as in one: blocks outside
  // [block_begin, block_end) are left out, and the running softmax of every row and query head is kept in `carried`
  // (total_q, num_q_heads, 2 P + 4). The call with `first` begins it, the call with `last` writes `out`.
  float* carried = nullptr;  // nullptr: one call does it all
  int block_begin = 0, block_end = 0;
  bool first = true, last = true;
  float* lse = nullptr;  // (total_q, num_q_heads): logarithm of the sum that weights were divided by; or nullptr
};

// Gradients of `attend` over chosen blocks of one sequence, whose tensors lie flat.
struct AttendBackwardArgs {
  const void *q, *k, *v;  // (total_q, num_q_heads, head_dim); (total_k, num_kv_heads, head_dim) twice
  const float *out, *grad, *lse;  // what `attend` gave, and the gradient of `out`
  void *dq, *dk, *dv;             // like q, k, v
  Storage storage;                // of q, k, v and their gradients
  const std::int32_t* block_ids;  // (total_q, num_kv_heads, topk)
  int topk;
  std::int64_t query_start;
  int total_q, total_k, num_q_heads, num_kv_heads, head_dim, block_tokens;
  float scale;
  int threads;
};

constexpr int kSketchBounds = 8;  // figures of a block in SketchLanes::bounds

// Index keys, and for each full block a sketch of them: key = centre + unit * scale * (code - 128) + rest, with a
// scale for each token. A code is kept in halves, code = 16 * high + low, so that a first scan reads half of it.
// Bytes of high and low hold two dimensions: 8 p + i in the lower half, 8 p + 4 + i in the upper.
struct SketchLanes {
  void* keys;             // (num_slots, B, index_dim), fp32 or bf16
  std::uint8_t* high;     // (num_slots, ceil(index_dim / 8), B, 4)
  std::uint8_t* low;      // the same
  std::uint8_t* scales;   // (num_slots, B)
  std::uint16_t* centre;  // (num_slots, index_dim), bf16
  // (num_slots, kSketchBounds): unit; largest |rest|; largest |coded part|; |centre|; with high halves alone, for a
  // scale of 1: largest |rest|, largest |coded part|; two of padding
  float* bounds;
};

struct SelectArgs {
  const float* index_q;  // (total_q, num_index_heads, index_dim)
  SketchLanes sketch;
  Storage storage;
  Spans spans;
  std::int32_t* block_ids;  // (total_q, num_index_heads, topk), written whole
  int num_index_heads, index_dim, block_tokens, topk, local_blocks, init_blocks;
  int threads;
  std::int64_t* work;  // out (4): blocks scanned, index bytes scanned, blocks looked at again, keys scored exactly
};

struct WriteArgs {  // rows of new tokens into their blocks; any of k, v, index_k may be nullptr
  const float* k;        // (rows, num_kv_heads, head_dim)
  const float* v;        // the same
  const float* index_k;  // (rows, index_dim)
  void* k_lane;
  void* v_lane;
  SketchLanes sketch;
  Storage storage;
  const std::int32_t* frame;   // (rows) place of k and v in their lanes
  const std::int32_t* slot;    // (rows) place of index_k in its lane
  const std::int32_t* offset;  // (rows) token's place in its block
  int rows, num_kv_heads, head_dim, index_dim, block_tokens, threads;
  int num_frames, num_slots;  // places in the lanes of K and V, and in those of index keys
};

struct Kernels {  // one table for each instruction set
  Isa isa;
  // y[i] (rows, weights[i]->out) = x (rows, in) * weights[i]^T, for `count` weights of the same `in`
  Status (*linear)(const float* x, int rows, const Weight* const* weights, float* const* y, int count, int threads);
  Status (*experts)(const ExpertsArgs&);
  Status (*attend)(const AttendArgs&);
  Status (*attend_backward)(const AttendBackwardArgs&);
  Status (*select)(const SelectArgs&);
  Status (*write)(const WriteArgs&);
  // y[r] = x[r] * rsqrt(mean(x[r]^2) + eps) * weight;  rows of width dim, y may be x
  Status (*rms_norm)(const float* x, int rows, int dim, const float* weight, float eps, float* y, int threads);
  // in place on x (rows, heads, head_dim): pairs (i, i + half) turned by cos/sin (rows, half)
  Status (*rope)(float* x, int rows, int heads, int head_dim, int half, const float* cos, const float* sin);
  // Rows of x (rows, in) as GGML's blocks, in a multiple of 32; errors (rows): what they are off by, squared and summed.
  // The blocks are the same with every instruction set.
  Status (*encode)(const float* x, int rows, int in, BlockKind kind, std::uint8_t* to, double* errors, int threads);
};

// Packs a row-major (out, in) weight into panels; the tail of the last panel is zero.
Status pack_weight(const void* w, Storage from, int out_features, int in, void* packed, Storage to);
// The same of codes (out, in), a byte each, of kind int8 or int4, and of their scales or offsets (out, in / group).
Status pack_codes(const std::uint8_t* codes, WeightKind kind, int out_features, int in, std::uint32_t* packed);
// Rows of the fp32 matrix that a packed weight stands for: to (n, in).
Status unpack_rows(const Weight& weight, const std::int64_t* rows, int n, float* to);
// cos/sin (rows, half) of float(position) * inv_freq[i], times scale; double precision inside.
Status rope_table(const std::int64_t* positions, int rows, const float* inv_freq, int half, float scale, float* cos,
                  float* sin);
// Sigmoid router: ids (rows, topk) ascending by expert, weights normalised to sum 1. bias only selects;
// ties go to the lower expert.
Status route_sigmoid(const float* logits, int rows, int experts, const float* bias, int topk, std::int32_t* ids,
                     float* weights);

Isa best_isa();                  // what this processor can run
bool isa_supported(Isa);
const Kernels& kernels(Isa);     // the table of one instruction set; it must be supported
void parallel_for(int tasks, int threads, void (*body)(int task, void* context), void* context);

}  // namespace freehold
