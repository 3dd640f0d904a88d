// A block of queries against a gallery that passes by in tiles: what both sides of the sweep share, as plain
// pointers. Larger scores are nearer: products, or squared distances negated.
#pragma once
#include <cstdint>

namespace fastdml {

// What embeddings are stored as.
enum class Storage : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

struct Rows {
  const void* data = nullptr;
  std::int64_t count = 0, dim = 0, ld = 0;  // rows are ld values apart
  Storage storage = Storage::f32;
};

template <class T>
struct Neighbour {
  T score;
  std::int32_t index;
};

// Ascending distinct thresholds, two values to read behind them, and bins that find a value's place among
// them: bin[b] is the first threshold in bin b or later, [bins + 1]. The bin of s is (s - theta[0]) * by, cut to
// the bins there are: it never falls as s rises, so that thresholds of earlier bins are below s and those of
// later ones above.
constexpr std::int32_t kCrowded = static_cast<std::int32_t>(0x80000000);  // mark of a bin of three or more
template <class T>
struct Ladder {
  const T* theta = nullptr;
  std::int64_t count = 0;
  const std::int32_t* bin = nullptr;
  std::int32_t bins = 0;
  T by = T(0);
};

// Rows with more right candidates than this find places through bins; fewer are compared with one by one.
constexpr std::int64_t kFewThresholds = 12;
// Bins of a row: as many as thresholds, but no more than float counts one by one, for the last one's number.
constexpr std::int64_t bins_of(std::int64_t thresholds) {
  return thresholds < (1 << 24) ? thresholds : 1 << 24;
}

template <class T>
struct Task {
  const T* queries = nullptr;  // packed: panels of queries, [dim][query rows]
  std::int64_t rows = 0, dim = 0;
  bool difference = false;
  const std::int64_t* own = nullptr;  // [rows] the gallery row that is left out, -1: none

  std::int64_t k = 0, capacity = 0;   // neighbours wanted (0: none), and room of a row
  Neighbour<T>* found = nullptr;      // [rows][capacity]
  std::int32_t* found_count = nullptr;  // [rows]
  T* bar = nullptr;                   // [rows] scores that do not exceed it are out

  const std::int64_t* start = nullptr;  // [rows + 1] into theta: scores of the right candidates, ascending;
  const T* theta = nullptr;             // two more to read at the end; null: no ranks are wanted
  std::int32_t* above = nullptr;        // candidates at theta or higher; where there are bins, only those
                                        // below the next threshold
  const std::int32_t* bin = nullptr;    // one more a row than thresholds
  const T* bin_by = nullptr;            // [rows]

  Ladder<T> pairs;    // thresholds of all pairs; count 0: none are counted
  bool half = false;  // one set: of the two pairs (i, j) and (j, i) the one with i < j

  double* spread = nullptr;  // [rows] sums of exp(spread_by * score + spread_shift), or null
  T spread_by = T(0), spread_shift = T(0);
};

// A tile of the gallery.
template <class T>
struct Tile {
  const T* panels = nullptr;  // packed, [dim][gallery panel]
  std::int64_t rows = 0;
  std::int64_t first = 0;     // number of its first row in the gallery
};

// Queries [query_from, query_to) of a block, whose right candidates are ids[list_from, list_to).
struct PairJob {
  std::int64_t query_from, query_to, list_from, list_to;
};

template <class T>
struct SweepOf {
  // Panels [begin, end) of queries against the tile; cells [2 * thresholds + 1] count pairs: at threshold u
  // (2 u + 1) and between thresholds (2 u).
  void (*fold)(const Task<T>&, const Tile<T>&, std::int64_t begin, std::int64_t end, std::uint32_t* cells,
               T* buffer);  // buffer: kBufferSize + kPickedSize values
  // Packs panels [begin, end) of rows, of queries or of the gallery.
  void (*pack)(const Rows&, const T* scale, bool queries, std::int64_t begin, std::int64_t end, T* to);
  // Scores of right pairs, but for those of a query with itself: of query i to theta[next[i]++].
  // scratch: of a gallery panel.
  void (*pair_scores)(const Task<T>&, const Rows& gallery, const T* scale, const std::int64_t* ids,
                      const PairJob& job, T* scratch, std::int64_t* next, T* theta);
  int query_rows, panel;  // rows of a panel
};

// One instruction set's.
struct SweepKernel {
  SweepOf<float> f32;
  SweepOf<double> f64;
};

// Gallery rows whose scores a row of queries holds at once, for the packed panels to stay in the cache.
constexpr std::int64_t strip_columns(std::int64_t dim, std::int64_t panel) {
  const std::int64_t fit = (128 << 10) / (dim < 1 ? 1 : dim) / panel;
  return panel * (fit < 1 ? 1 : fit > 1024 / panel ? 1024 / panel : fit);
}
constexpr std::int64_t kBufferSize = 8 * 1024;  // scores of a panel of queries and a strip,
constexpr std::int64_t kPickedSize = 2 * (1024 + 16);  // those of a row that are picked of them, and their bins

// Keeps the k nearest of a row; ties go to the lower index. Returns the score to be exceeded.
template <class T>
T keep_nearest(Neighbour<T>* found, std::int32_t& count, std::int64_t k);

}  // namespace fastdml
