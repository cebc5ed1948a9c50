// All kernels of one level of instructions, METAMORPH_LEVEL; compiled once for each.
#include "kernels.h"

#include "decode_attention.h"
#include "linear.h"
#include "prefill_attention.h"
#include "rows.h"

#define NAME(level) level##_kernels
#define KERNELS(level) NAME(level)

namespace metamorph::cpu {

Kernels KERNELS(METAMORPH_LEVEL)() {
  return {LANES, attend_head, attend_block, rotate_token, norm_row, swiglu_row,
          largest_of_row, linear_columns};
}

}  // namespace metamorph::cpu
