// What a step of generation emits for each sequence, and what that does to the sequence: see
// metamorph/generation/decode_step.py, which says the same in PyTorch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "kernels.h"
#include "tensors.h"

namespace metamorph::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Number>
Number* numbers(const Tensor& tensor) {
  return static_cast<Number*>(tensor.mutable_data_ptr());
}

void require_size(const char* name, const Tensor& tensor, int64_t dimension, int64_t size) {
  require(tensor.size(dimension) == size, name, ": expected size ", size, " in dimension ",
          dimension, ", got ", tensor.size(dimension));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> emit_greedy_op(
    const Tensor& logits, const Tensor& vectors, const Tensor& effects, int64_t image_end,
    Tensor counts, Tensor lengths, Tensor cursor, Tensor tokens_history, Tensor best_history,
    Tensor vectors_history) {
  // All before the first is written.
  require_tensor("logits", logits, 2, "[B, V]", ScalarType::Float);
  require_tensor("vectors", vectors, 2, "[B, C]", ScalarType::Float);
  require_tensor("effects", effects, 2, "[2, V]", ScalarType::Long);
  require_tensor("counts", counts, 2, "[5, B]", ScalarType::Long);
  require_tensor("lengths", lengths, 1, "[B]", ScalarType::Long);
  require_tensor("cursor", cursor, 1, "[1]", ScalarType::Long);
  require_tensor("tokens_history", tokens_history, 2, "[steps, B]", ScalarType::Long);
  require_tensor("best_history", best_history, 2, "[steps, B]", ScalarType::Float);
  require_tensor("vectors_history", vectors_history, 3, "[steps, B, C]", ScalarType::Float);
  const int64_t rows = logits.size(0), vocabulary = logits.size(1), columns = vectors.size(1);
  const int64_t steps = tokens_history.size(0);
  require_size("vectors", vectors, 0, rows);
  require_size("effects", effects, 0, 2);
  require_size("effects", effects, 1, vocabulary);
  require_size("counts", counts, 0, 5);
  require_size("counts", counts, 1, rows);
  require_size("lengths", lengths, 0, rows);
  require_size("cursor", cursor, 0, 1);
  require_size("tokens_history", tokens_history, 1, rows);
  require_size("best_history", best_history, 0, steps);
  require_size("best_history", best_history, 1, rows);
  require_size("vectors_history", vectors_history, 0, steps);
  require_size("vectors_history", vectors_history, 1, rows);
  require_size("vectors_history", vectors_history, 2, columns);
  require(0 <= image_end && image_end < vocabulary, "image_end: expected 0 to ", vocabulary - 1,
          ", got ", image_end);
  const int64_t line = *numbers<int64_t>(cursor);
  require(0 <= line && line < steps, "cursor: expected 0 to ", steps - 1, ", got ", line);

  Tensor token = torch::stable::new_empty(lengths, {rows});
  Tensor is_visual = torch::stable::new_empty(lengths, {rows, 1}, ScalarType::Bool);
  Tensor places = torch::stable::new_empty(lengths, {rows});
  Tensor visible = torch::stable::new_empty(lengths, {rows});
  int64_t *tokens = numbers<int64_t>(token), *places_to = numbers<int64_t>(places);
  int64_t* visible_to = numbers<int64_t>(visible);
  bool* is_visual_to = numbers<bool>(is_visual);

  const int64_t count_stride = counts.stride(0);
  int64_t* alive = numbers<int64_t>(counts);
  int64_t *left = alive + count_stride, *room = left + count_stride;
  int64_t* stored = numbers<int64_t>(lengths);
  const int64_t* needs = static_cast<const int64_t*>(effects.const_data_ptr());
  const int64_t* begins = needs + effects.stride(0);
  const float* logits_from = static_cast<const float*>(logits.const_data_ptr());
  const float* vectors_from = static_cast<const float*>(vectors.const_data_ptr());
  const int64_t logits_stride = logits.stride(0), vectors_stride = vectors.stride(0);
  int64_t* tokens_line = numbers<int64_t>(tokens_history) + line * tokens_history.stride(0);
  float* best_line = numbers<float>(best_history) + line * best_history.stride(0);
  float* vectors_line = numbers<float>(vectors_history) + line * vectors_history.stride(0);
  const int64_t row_stride = vectors_history.stride(1);
  for (int64_t row = 0; row < rows; ++row) {
    const float* own = logits_from + row * logits_stride;
    const int64_t chosen = kernels().largest_of_row(own, vocabulary);
    const int64_t before = left[row], id = before > 0 ? image_end : chosen;
    tokens[row] = tokens_line[row] = id;
    best_line[row] = own[chosen];
    std::memcpy(vectors_line + row * row_stride, vectors_from + row * vectors_stride,
                columns * sizeof(float));
    is_visual_to[row] = before > 1;
    left[row] = std::max(before - 1, begins[id]);
    room[row] -= 1;
    if (room[row] <= needs[id]) alive[row] = 0;
    places_to[row] = stored[row];
    stored[row] += alive[row];
    visible_to[row] = stored[row] * alive[row];
  }
  *numbers<int64_t>(cursor) = line + 1;
  return {token, is_visual, places, visible};
}

}  // namespace
}  // namespace metamorph::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(metamorph_cpu_ops, library) {
  library.def(
      "emit_greedy(Tensor logits, Tensor vectors, Tensor effects, int image_end, Tensor(a!) counts, "
      "Tensor(b!) lengths, Tensor(c!) cursor, Tensor(d!) tokens_history, Tensor(e!) best_history, "
      "Tensor(f!) vectors_history) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(metamorph_cpu_ops, CompositeExplicitAutograd, library) {
  library.impl("emit_greedy", TORCH_BOX(&metamorph::cpu::emit_greedy_op));
}
