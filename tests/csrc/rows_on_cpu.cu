// The row functions of csrc/ on the CPU: a team is a few threads that meet at a barrier.
#include <barrier>
#include <thread>
#include <vector>

#include "cosine_row.cuh"
#include "launch.cuh"
#include "pool_token.cuh"
#include "quantise_row.cuh"
#include "scale_span.cuh"

namespace {

using namespace metamorph;

struct Meeting {
  explicit Meeting(int size) : size(size), barrier(size), values(size) {}
  int size;
  std::barrier<> barrier;
  std::vector<uint32_t> values;
};

class HostTeam {
 public:
  HostTeam(int rank, Meeting& meeting) : rank_(rank), meeting_(meeting) {}
  int rank() const { return rank_; }
  int size() const { return meeting_.size; }

  template <int COUNT>
  void sum(float (&values)[COUNT]) const {
    for (float& value : values) {
      float total = 0;
      combine(bits_as<uint32_t>(value), [&](uint32_t bits) { total += bits_as<float>(bits); });
      value = total;
    }
  }

  uint32_t maximum(uint32_t value) const {
    uint32_t largest = 0;
    combine(value, [&](uint32_t other) { largest = std::max(largest, other); });
    return largest;
  }

 private:
  template <typename Take>
  void combine(uint32_t value, const Take& take) const {
    meeting_.values[rank_] = value;
    meeting_.barrier.arrive_and_wait();
    for (uint32_t other : meeting_.values) take(other);
    meeting_.barrier.arrive_and_wait();
  }

  int rank_;
  Meeting& meeting_;
};

// Calls row(team, i) for every row, in every thread of a team.
template <typename Row>
void on_team(int64_t rows, int threads, const Row& row) {
  Meeting meeting(threads);
  std::vector<std::thread> team;
  for (int rank = 0; rank < threads; ++rank) {
    team.emplace_back([&, rank] {
      for (int64_t i = 0; i < rows; ++i) row(HostTeam(rank, meeting), i);
    });
  }
  for (std::thread& thread : team) thread.join();
}

bool held_by(int threads, const Rows& rows, int64_t stride, int64_t columns) {
  return can_hold(rows, stride, columns) && columns <= threads * HELD;
}

}  // namespace

// Each of these three returns whether the rows were held.
extern "C" int cosine_rows_on_cpu(const CosineRows* a, int threads) {
  const bool held = held_by(threads, a->prediction, a->prediction.stride, a->columns) &&
                    held_by(threads, a->target, a->target.stride, a->columns);
  with_element(a->prediction.element, [&](auto prediction) {
    return with_element(a->target.element, [&](auto target) {
      on_team(a->rows, threads, [&](const HostTeam& team, int64_t row) {
        using P = decltype(prediction);
        using T = decltype(target);
        held ? cosine_row<true, P, T>(team, *a, row) : cosine_row<false, P, T>(team, *a, row);
      });
      return cudaSuccess;
    });
  });
  return held;
}

extern "C" int pool_normalize_on_cpu(const PoolNormalize* a, int threads) {
  const bool held = held_by(threads, a->tokens, a->tokens.stride, a->columns) &&
                    held_by(threads, a->tokens, a->image_stride, a->columns);
  with_element(a->tokens.element, [&](auto element) {
    on_team(a->images * a->grid * a->grid, threads, [&](const HostTeam& team, int64_t row) {
      using E = decltype(element);
      held ? pool_token<true, E>(team, *a, row) : pool_token<false, E>(team, *a, row);
    });
    return cudaSuccess;
  });
  return held;
}

extern "C" int quantise_rows_on_cpu(const QuantiseRows* a, int threads) {
  const bool held = held_by(threads, a->x, a->x.stride, a->columns);
  with_element(a->x.element, [&](auto element) {
    on_team(a->rows, threads, [&](const HostTeam& team, int64_t row) {
      using E = decltype(element);
      held ? quantise_row<true, E>(team, *a, row) : quantise_row<false, E>(team, *a, row);
    });
    return cudaSuccess;
  });
  return held;
}

extern "C" void scale_on_cpu(const Scale* a, int threads, int64_t teams) {
  with_element(a->element, [&](auto element) {
    on_team(teams, threads, [&](const HostTeam& team, int64_t first) {
      scale_spans<decltype(element)>(team, *a, first, teams);
    });
    return cudaSuccess;
  });
}
