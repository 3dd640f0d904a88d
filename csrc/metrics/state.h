// What a sweep keeps: the block of queries and what has been found of them so far.
#pragma once
#include <cstdint>
#include <vector>

#include "sweep.h"

namespace fastdml {

// Length of every row in double precision; NaN or infinite where a value is.
void row_norms(const Rows& x, double* norms);

// All pairs counted by their score: at each of ascending distinct thresholds, and between them.
template <class T>
class PairCounts {
 public:
  explicit PairCounts(std::vector<T> thresholds);
  const std::vector<std::uint64_t>& cells() const { return cells_; }  // [2 * thresholds + 1]
  std::vector<std::uint64_t>& cells() { return cells_; }
  Ladder<T> ladder() const;

 private:
  std::int64_t count_;
  std::vector<T> thresholds_;  // as a ladder has them
  std::vector<std::int32_t> bin_;
  std::vector<std::uint64_t> cells_;
  T by_;
};

template <class T>
class Sweep {
 public:
  // own: the gallery row of each query that is left out, or -1. half: queries and gallery are one set; what
  // is counted of pairs is counted of each once.
  Sweep(const Rows& queries, const T* scale, bool difference, std::vector<std::int64_t> own, bool half);

  // Scores of the right candidates ids, by jobs of four numbers (PairJob); start: where those of a query
  // begin once its own is left out, [rows + 1].
  void find_right(const Rows& gallery, const T* scale, const std::int64_t* ids,
                  const std::vector<PairJob>& jobs, std::vector<std::int64_t> start);
  // What to keep of the gallery, before it passes. gains: of the right candidates in the order found, or
  // null; they are sorted with the scores, the smaller first behind an equal score in descending order.
  void want_ranks(const float* gains);
  void want_neighbours(std::int64_t k);
  void want_pairs(PairCounts<T>* counts);
  void want_spread(T by, T shift);

  void fold(const Rows& gallery, const T* scale, std::int64_t from, std::int64_t to);

  std::int64_t rows() const { return task_.rows; }
  std::int64_t neighbours_of_a_row() const { return task_.k; }
  std::int64_t right_count() const { return start_.empty() ? 0 : start_.back(); }
  const T* right() const { return theta_.data(); }
  const std::vector<float>& gains() const { return gains_; }
  const std::vector<double>& spread() const { return spread_; }
  // Place of every right candidate among all, from 1, ascending within a query. Candidates of equal score
  // that are not right come first.
  void ranks(std::int32_t* out) const;
  // [rows, k] nearest first; -1 where the gallery has no more.
  void neighbours(std::int64_t* index, T* score);

 private:
  Task<T> task_;
  std::vector<T> queries_, theta_, bar_, bin_by_, packed_;
  std::vector<float> gains_;
  std::vector<std::int64_t> own_, start_;
  std::vector<std::int32_t> above_, bin_, found_count_;
  std::vector<Neighbour<T>> found_;
  std::vector<double> spread_;
  PairCounts<T>* counts_ = nullptr;
};

}  // namespace fastdml
