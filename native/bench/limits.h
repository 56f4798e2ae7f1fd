// What the machine allows, measured: bytes read from memory, and operations of one instruction set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "freehold/kernels.h"

namespace freehold {

// read: bytes from memory, by a sum. The others are operations, a multiplication and an addition counting as two.
// f32: fused multiply-add, on x86 without FMA both in turn; bf16: dot products of pairs; int8: of fours (VNNI).
enum class Limit : int { read = 0, f32 = 1, bf16 = 2, int8 = 3 };

class Limits {
 public:
  // read_nbytes should be many times what the caches hold; steps sets how long the computing takes.
  Limits(Isa isa, int threads, std::size_t read_nbytes, long steps);
  void sample(Limit limit);                 // measures it once more
  double per_second(Limit limit) const;     // the best so far, as nothing exceeds a limit; 0: no such instruction

 private:
  int threads_, tasks_;
  long steps_;
  std::vector<std::uint64_t> words_;
  struct Chains {
    void (*run)(long steps);
    double operations;  // of one step
  } chains_[4] = {};
  double best_[4] = {};
};

double seconds_now();  // of a clock that never goes back

}  // namespace freehold
