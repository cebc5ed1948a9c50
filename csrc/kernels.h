// What the kernels take. Every function queues one kernel on `stream` of the current device, or
// none for no rows, and returns the error of the launch. Pointers are to device memory; strides
// count elements; the columns of a row are neighbours, and outputs are dense. Checking arguments is
// the caller's part (ops.cpp).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace metamorph {

enum class Element { FLOAT32, BFLOAT16, FLOAT16 };
constexpr int64_t MOST_COLUMNS = int64_t{1} << 30;

struct Rows {
  const void* data;
  Element element;
  int64_t stride;
};

struct CosineRows {
  Rows prediction, target;
  const int64_t* target_index;  // of every prediction, below zero for none; null: its own row
  int64_t rows, targets, columns;
  float* losses;
  void* gradient;  // rows of the prediction's elements, or null
};
cudaError_t cosine_rows(const CosineRows& arguments, cudaStream_t stream);

struct PoolNormalize {
  Rows tokens;  // of side x side tokens for each image
  int64_t image_stride, images, columns;
  int side, grid;
  void* pooled;
};
cudaError_t pool_normalize(const PoolNormalize& arguments, cudaStream_t stream);

struct QuantiseRows {
  Rows x;
  int64_t rows, columns;
  bool with_gelu;
  void* values;  // float8_e4m3fn
  float* scales;
};
cudaError_t quantise_rows(const QuantiseRows& arguments, cudaStream_t stream);

}  // namespace metamorph
