// Rows as a team reads and writes them: held in registers, or streamed from memory.
//
// A held row is aligned to 16 bytes, has a multiple of 8 columns and at most 40 for each thread of
// the team. It is read once, 16 bytes at a time, and kept in registers as float32. Any other row
// is streamed: read one element at a time, again for each pass over it, mostly from the caches.
#pragma once

#include "chunk.cuh"

namespace metamorph {

constexpr int CHUNKS = 5;  // of one thread: a warp holds rows of up to 1280 columns
constexpr int HELD = CHUNKS * CHUNK;

// The columns of a row that one thread of a team works on, counted from 0.
template <bool IS_HELD, typename Team>
class Share {
 public:
  METAMORPH_BOTH Share(const Team& team, int columns)
      : rank(team.rank()), size(team.size()), columns(columns) {}

  METAMORPH_BOTH int count() const {
    return IS_HELD ? HELD : (columns + size - 1) / size;
  }
  // Held: the first column of the chunk of value i. Streamed: the column of value i.
  METAMORPH_BOTH int column(int i) const {
    return IS_HELD ? (i / CHUNK * size + rank) * CHUNK : i * size + rank;
  }
  METAMORPH_BOTH bool has(int i) const { return column(i) < columns; }

 private:
  int rank, size, columns;
};

// The values of `source` at a thread's share of the columns; 0 beyond the last column. A source
// fills the share of a held row, fill(share, values), and gives one value, one(column).
template <bool IS_HELD, typename Source, typename Team>
class Values {
 public:
  METAMORPH_BOTH Values(const Source& source, const Share<IS_HELD, Team>& share)
      : source(source), share(share) {
    if constexpr (IS_HELD) source.fill(share, held);
  }

  METAMORPH_BOTH float operator[](int i) const {
    if constexpr (IS_HELD) {
      return held[i];
    } else {
      return share.has(i) ? source.one(share.column(i)) : 0;
    }
  }

 private:
  const Source& source;
  const Share<IS_HELD, Team>& share;
  float held[IS_HELD ? HELD : 1];
};

// A row in memory, as a source.
template <typename Element>
struct Row {
  const Element* data;

  // All loads are on their way before the first is waited for.
  template <typename Team>
  METAMORPH_BOTH void fill(const Share<true, Team>& share, float (&values)[HELD]) const {
    Chunk<Element> chunks[CHUNKS] = {};
#pragma unroll
    for (int k = 0; k < CHUNKS; ++k) {
      if (share.has(k * CHUNK)) chunks[k].load(data + share.column(k * CHUNK));
    }
#pragma unroll
    for (int k = 0; k < CHUNKS; ++k) chunks[k].unpack(values + k * CHUNK);
  }
  METAMORPH_BOTH float one(int column) const { return widen(data[column]); }
};

// Writes value(i) to a thread's share of the columns of `row`.
template <bool IS_HELD, typename Element, typename Team, typename Value>
METAMORPH_BOTH void write_row(
    Element* row, const Share<IS_HELD, Team>& share, const Value& value) {
  if constexpr (IS_HELD) {
#pragma unroll
    for (int k = 0; k < CHUNKS; ++k) {
      float eight[CHUNK];
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) eight[i] = value(k * CHUNK + i);
      Chunk<Element> chunk;
      chunk.pack(eight);
      if (share.has(k * CHUNK)) chunk.store(row + share.column(k * CHUNK));
    }
  } else {
    for (int i = 0; i < share.count(); ++i) {
      if (share.has(i)) narrow(value(i), row[share.column(i)]);
    }
  }
}

}  // namespace metamorph
