// A vector register of the level that this is compiled for, by the vector extensions of GCC and
// Clang. Everything has internal linkage: a level must not lend its code to another.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace metamorph::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 4;

typedef float Floats __attribute__((vector_size(BYTES)));
typedef uint32_t Words __attribute__((vector_size(BYTES)));
typedef int32_t Integers __attribute__((vector_size(BYTES)));
typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));

struct BFloat16 {
  uint16_t bits;
};

#define INLINE static inline __attribute__((always_inline))

INLINE Floats splat(float value) { return value - Floats{}; }

INLINE Floats load(const float* from) {
  Floats vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

INLINE Floats load(const BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
}

// `count` elements, fewer than LANES, and zeros behind them.
template <typename Element>
INLINE Floats load_some(const Element* from, int64_t count) {
  Element some[LANES] = {};
  std::memcpy(some, from, count * sizeof(Element));
  return load(some);
}

INLINE void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

INLINE void put(float* to, float value) { *to = value; }

// Rounds to the nearest, ties to even; a NaN stays one.
INLINE void put(BFloat16* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to->bits = static_cast<uint16_t>(value != value ? bits >> 16 | 0x40 : rounded);
}

// Sums of pairs of lanes whose numbers differ in the bit BLOCK: of `a` where it is 0, of `b` where 1.
template <int BLOCK, int... LANE>
INLINE Floats pair_sums(Floats a, Floats b, std::integer_sequence<int, LANE...>) {
  const Floats own = {(LANE & BLOCK ? b[LANE] : a[LANE])...};
  const Floats other = {(LANE & BLOCK ? b[LANE ^ BLOCK] : a[LANE ^ BLOCK])...};
  return own + other;
}

// A vector whose lane i is the sum of all lanes of make(FIRST + i).
template <int FIRST, int COUNT, typename Make>
INLINE Floats sums_of(const Make& make) {
  if constexpr (COUNT == 1) {
    return make(FIRST);
  } else {
    return pair_sums<COUNT / 2>(sums_of<FIRST, COUNT / 2>(make),
                                sums_of<FIRST + COUNT / 2, COUNT / 2>(make),
                                std::make_integer_sequence<int, LANES>());
  }
}

template <int BLOCK, int... LANE>
INLINE Floats swapped(Floats vector, std::integer_sequence<int, LANE...>) {
  return Floats{vector[LANE ^ BLOCK]...};
}

// All lanes by `join`, halves of them at a time: one after another, each would wait for the last.
template <int BLOCK = LANES / 2, typename Join>
INLINE float joined(Floats vector, const Join& join) {
  if constexpr (BLOCK == 0) {
    return vector[0];
  } else {
    return joined<BLOCK / 2>(
        join(vector, swapped<BLOCK>(vector, std::make_integer_sequence<int, LANES>())), join);
  }
}

INLINE Floats larger(Floats a, Floats b) { return b > a ? b : a; }

INLINE float sum_of(Floats vector) {
  return joined(vector, [](Floats a, Floats b) __attribute__((always_inline)) { return a + b; });
}

INLINE float largest_of(Floats vector) { return joined(vector, larger); }

// e^x for x <= 0 to 2 units in the last place, 0 below -87; a NaN stays one.
INLINE Floats exponential(Floats x) {
  const Floats clamped = x < -87.0f ? splat(-87.0f) : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2. Added to 1.5 * 2^23, a float has no place for a fraction.
  const Floats shifter = splat(12582912.0f);
  const Floats shifted = clamped * 1.44269504f + shifter;
  const Floats n = shifted - shifter;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats power = splat(1.0f / 5040);
  power = power * r + 1.0f / 720;
  power = power * r + 1.0f / 120;
  power = power * r + 1.0f / 24;
  power = power * r + 1.0f / 6;
  power = power * r + 0.5f;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  // The last bits of `shifted` are n, which goes to the exponent.
  const Words scale = (reinterpret_cast<Words>(shifted) + 127) << 23;
  return x < -87.0f ? splat(0) : power * reinterpret_cast<Floats>(scale);
}

}  // namespace
}  // namespace metamorph::cpu
