// What the kernels take. Every function queues one kernel on `stream` of the current device, or
// none where there is nothing to write, and returns the error of the launch. Pointers are to device
// memory; strides count elements; the columns of a row are neighbours, and outputs are dense.
// Checking arguments is the caller's part (ops.cpp).
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
  bool mean;             // divides the gradient, and not the losses, by the rows that count
  const int64_t* count;  // how many these are, taken for 1 if fewer; null: all rows
  float* losses;
  void* gradient;  // rows of the prediction's elements, but float32 beside float16; or null
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

struct Scale {
  void* values;  // multiplied in place
  Element element;
  int64_t count;
  const float* factor;
};
cudaError_t scale(const Scale& arguments, cudaStream_t stream);

}  // namespace metamorph
