#include "limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace freehold {
namespace {

std::atomic<float> sink;  // results end here, so that no loop is left out

// Independent chains of x = x * a + b, enough of them to cover the latency, few enough to stay in registers.
template <typename V, int kChains>
__attribute__((always_inline)) inline void multiply_add(long steps) {
  const V a = V{} + 0.999f, b = V{} + 0.001f;
  V x[kChains];
#pragma GCC unroll 32
  for (int c = 0; c < kChains; ++c) x[c] = V{} + static_cast<float>(c);
  for (long i = 0; i < steps; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < kChains; ++c) x[c] = x[c] * a + b;
  }
#pragma GCC unroll 32
  for (int c = 1; c < kChains; ++c) x[0] += x[c];
  sink.store(x[0][0], std::memory_order_relaxed);
}

typedef float f32x4 __attribute__((vector_size(16)));
#if defined(__x86_64__)
constexpr int kChains = 14;  // sixteen registers, two of them for a and b
#else
constexpr int kChains = 24;
#endif
void multiply_add_portable(long steps) { multiply_add<f32x4, kChains>(steps); }

#if defined(__x86_64__)
#define FH_TARGET(features) __attribute__((target(features)))
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x16 __attribute__((vector_size(64)));

FH_TARGET("avx2,fma") void multiply_add_avx2(long steps) { multiply_add<f32x8, 14>(steps); }
FH_TARGET("avx512f,fma") void multiply_add_avx512(long steps) { multiply_add<f32x16, 24>(steps); }

// Assembly, as compilers copy and spill the accumulators of these intrinsics. Registers 0 to 15 are the chains; what
// they hold does not matter.
#define FH_DOTS(name, instruction)                                                                                \
  FH_TARGET("avx512f") void name(long steps) {                                                                    \
    const f32x16 zero = {};                                                                                       \
    for (long i = 0; i < steps; ++i)                                                                              \
      asm volatile(".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n" instruction                              \
                   " %0, %0, %%zmm\\chain\n.endr" ::"v"(zero)                                                     \
                   : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",     \
                     "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                                                \
  }
FH_DOTS(dot_bf16, "vdpbf16ps")
FH_DOTS(dot_int8, "vpdpbusd")
#endif

template <typename F>
void run_parallel(int tasks, int threads, F&& f) {
  parallel_for(tasks, threads, [](int task, void* context) { (*static_cast<F*>(context))(task); }, &f);
}

constexpr std::size_t kStep = 32;  // words: four cache lines

// The processor's own prefetching alone does not reach what memory gives.
std::uint64_t sum_of(const std::uint64_t* p, std::size_t words) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < words; i += kStep) {
    for (std::size_t line = 0; line < kStep; line += 8) __builtin_prefetch(p + i + 512 + line);
    for (std::size_t w = 0; w < kStep; ++w) sum += p[i + w];
  }
  return sum;
}

}  // namespace

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Limits::Limits(Isa isa, int threads, std::size_t read_nbytes, long steps)
    : threads_(threads), tasks_(threads * 16), steps_(steps) {  // tasks: a thread that is late reads less
  const std::size_t unit = kStep * static_cast<std::size_t>(tasks_);
  words_.assign((read_nbytes / 8 + unit - 1) / unit * unit, 1);
  const auto set = [&](Limit limit, void (*run)(long), double operations) {
    chains_[static_cast<int>(limit)] = {run, operations};
  };
  set(Limit::f32, multiply_add_portable, kChains * 4 * 2.0);
#if defined(__x86_64__)
  if (isa == Isa::avx2) set(Limit::f32, multiply_add_avx2, 14 * 8 * 2.0);
  if (isa == Isa::avx512 || isa == Isa::avx512bf16) set(Limit::f32, multiply_add_avx512, 24 * 16 * 2.0);
  if (isa == Isa::avx512bf16) {
    set(Limit::bf16, dot_bf16, 16 * 32 * 2.0);
    set(Limit::int8, dot_int8, 16 * 64 * 2.0);
  }
#endif
  (void)isa;
}

void Limits::sample(Limit limit) {
  const Chains& chains = chains_[static_cast<int>(limit)];
  double amount = 0.0;
  const double start = seconds_now();
  if (limit == Limit::read) {
    const std::size_t per_task = words_.size() / static_cast<std::size_t>(tasks_);
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(tasks_));
    run_parallel(tasks_, threads_, [&](int task) {
      const std::size_t i = static_cast<std::size_t>(task);
      sums[i] = sum_of(words_.data() + i * per_task, per_task);
    });
    for (const std::uint64_t sum : sums) sink.store(static_cast<float>(sum), std::memory_order_relaxed);
    amount = static_cast<double>(words_.size()) * 8;
  } else if (chains.run != nullptr) {
    run_parallel(threads_, threads_, [&](int) { chains.run(steps_); });
    amount = chains.operations * static_cast<double>(steps_) * threads_;
  }
  double& best = best_[static_cast<int>(limit)];
  best = std::max(best, amount / (seconds_now() - start));
}

double Limits::per_second(Limit limit) const { return best_[static_cast<int>(limit)]; }

}  // namespace freehold
