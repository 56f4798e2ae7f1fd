// How codes lie in a word, and what they are as unsigned bytes.
#pragma once
#include <cmath>
#include <cstdint>

namespace freehold {

// Where the code of input i stands in its word. With 4 bits, the first four inputs are the low halves of the bytes: one mask
// makes them bytes in order.
constexpr int code_shift(int bits, int i) { return bits == 8 ? 8 * i : 8 * (i % 4) + 4 * (i / 4); }

struct ByteValues {  // value of a code = unit * (bytes[code] - zero); unit is 0 if there are no such bytes
  std::uint8_t bytes[16];
  int zero;
  float unit;
  bool same;  // the byte of a code is the code
};

inline ByteValues byte_values(const float* table) {
  ByteValues made{{}, 0, 0.0f, true};
  for (int i = 0; i < 16; ++i) {
    made.bytes[i] = static_cast<std::uint8_t>(i);
    made.same = made.same && table[i] == table[0] + static_cast<float>(i);
  }
  made.same = made.same && table[0] == std::floor(table[0]) && std::fabs(table[0]) <= 128.0f;
  if (made.same) {
    made.zero = -static_cast<int>(table[0]);
    made.unit = 1.0f;
    return made;
  }
  made.zero = 128;
  for (const float many : {1.0f, 2.0f, 4.0f}) {
    bool fits = true;
    for (int i = 0; i < 16; ++i) {
      const float value = table[i] * many + 128.0f;
      fits = fits && value >= 0.0f && value <= 255.0f && value == std::floor(value);
      if (fits) made.bytes[i] = static_cast<std::uint8_t>(value);
    }
    if (fits) {
      made.unit = 1.0f / many;
      break;
    }
  }
  return made;
}

}  // namespace freehold
