// Eight neighbouring elements of a row, moved by 16-byte accesses and computed with in float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

// The arithmetic also compiles for the CPU, where tests check it without a GPU.
#define METAMORPH_BOTH __host__ __device__ __forceinline__

namespace metamorph {

constexpr int CHUNK = 8;

template <typename To, typename From>
METAMORPH_BOTH To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}

METAMORPH_BOTH float widen(float x) { return x; }
METAMORPH_BOTH float widen(__half x) { return __half2float(x); }
METAMORPH_BOTH float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

METAMORPH_BOTH void narrow(float x, float& to) { to = x; }
METAMORPH_BOTH void narrow(float x, __half& to) { to = __float2half_rn(x); }
METAMORPH_BOTH void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
METAMORPH_BOTH void narrow(float x, __nv_fp8_e4m3& to) {  // saturates; NaN stays
  to.__x = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

// Element is float, __nv_bfloat16, __half or, to write only, __nv_fp8_e4m3.
template <typename Element>
struct Chunk {
  static constexpr int WORDS = CHUNK * sizeof(Element) / 4;
  uint32_t words[WORDS];

  METAMORPH_BOTH void load(const Element* aligned) {
#pragma unroll
    for (int i = 0; i < WORDS; i += 4) {
      const uint4 four = reinterpret_cast<const uint4*>(aligned)[i / 4];
      words[i] = four.x;
      words[i + 1] = four.y;
      words[i + 2] = four.z;
      words[i + 3] = four.w;
    }
  }

  METAMORPH_BOTH void store(Element* aligned) const {
    if constexpr (WORDS == 2) {
      *reinterpret_cast<uint2*>(aligned) = {words[0], words[1]};
    } else {
#pragma unroll
      for (int i = 0; i < WORDS; i += 4) {
        reinterpret_cast<uint4*>(aligned)[i / 4] = {
            words[i], words[i + 1], words[i + 2], words[i + 3]};
      }
    }
  }

  METAMORPH_BOTH void unpack(float* values) const {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
      if constexpr (std::is_same_v<Element, float>) {
        values[i] = bits_as<float>(words[i]);
      } else if constexpr (std::is_same_v<Element, __half>) {
        const float2 pair = __half22float2(bits_as<__half2>(words[i]));
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      } else {
        static_assert(std::is_same_v<Element, __nv_bfloat16>);
        values[2 * i] = bits_as<float>(words[i] << 16);
        values[2 * i + 1] = bits_as<float>(words[i] & 0xffff0000u);
      }
    }
  }

  METAMORPH_BOTH void pack(const float* values) {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
      if constexpr (std::is_same_v<Element, float>) {
        words[i] = bits_as<uint32_t>(values[i]);
      } else if constexpr (std::is_same_v<Element, __half>) {
        words[i] = bits_as<uint32_t>(__floats2half2_rn(values[2 * i], values[2 * i + 1]));
      } else if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
        words[i] = bits_as<uint32_t>(__floats2bfloat162_rn(values[2 * i], values[2 * i + 1]));
      } else {
        static_assert(std::is_same_v<Element, __nv_fp8_e4m3>);
        const float* four = values + 4 * i;
        const uint32_t low =
            __nv_cvt_float2_to_fp8x2({four[0], four[1]}, __NV_SATFINITE, __NV_E4M3);
        const uint32_t high =
            __nv_cvt_float2_to_fp8x2({four[2], four[3]}, __NV_SATFINITE, __NV_E4M3);
        words[i] = low | high << 16;
      }
    }
  }
};

}  // namespace metamorph
