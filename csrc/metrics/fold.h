// One row of scores, a strip of the gallery at a time, folded into what is kept of its query.
#pragma once
#include <limits>

#include "panel.h"
#include "sweep.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// The number of thresholds <= s, for s >= the first of them and not beyond the bins' order. b: bin of s.
template <class T>
FASTDML_FN std::int32_t place(const T* theta, const std::int32_t* bin, std::int32_t b, T s) {
  std::int32_t from = bin[b], to = bin[b + 1];
  while (to - from > 8) {
    const std::int32_t middle = from + (to - from) / 2;
    if (theta[middle] <= s)
      from = middle + 1;
    else
      to = middle;
  }
  while (from < to && theta[from] <= s) ++from;
  return from;
}

// Calls take(s, place of s) for all values of s[0, count) that are at least the first threshold.
template <class T, class F>
FASTDML_FN void each_place(const T* s, std::int64_t count, const T* theta, const std::int32_t* bin,
                           std::int32_t bins, T low, T by, F take) {
  constexpr int W = kWidth<T>;
  const T last = static_cast<T>(bins - 1);
  std::int64_t j = 0;
  for (; j + W <= count; j += W) {
    const Vector<T> v = load(s + j);
    if (!any(v >= low)) continue;
    // In the range of the bins even where s is below the first threshold.
    const Mask<T> b = __builtin_convertvector(max(min((v - low) * by, last), T(0)), Mask<T>);
    for (int i = 0; i < W; ++i)
      if (v[i] >= low) take(v[i], place(theta, bin, static_cast<std::int32_t>(b[i]), v[i]));
  }
  for (; j < count; ++j)
    if (s[j] >= low) {
      const auto b = static_cast<std::int32_t>(max(min((s[j] - low) * by, last), T(0)));
      take(s[j], place(theta, bin, b, s[j]));
    }
}

// Adds to above[k] how many of s[0, count) are at least theta[k].
template <class T>
FASTDML_FN void count_above(const T* s, std::int64_t count, const T* theta, std::int64_t thresholds,
                            std::int32_t* above) {
  constexpr int W = kWidth<T>;
  for (std::int64_t k = 0; k < thresholds; k += 4) {
    const int lanes = thresholds - k < 4 ? static_cast<int>(thresholds - k) : 4;
    Vector<T> t[4];
    Mask<T> found[4];
    for (int i = 0; i < 4; ++i) {
      t[i] = broadcast(theta[i < lanes ? k + i : k]);
      found[i] = Mask<T>{};
    }
    std::int64_t j = 0;
    for (; j + W <= count; j += W) {
      const Vector<T> v = load(s + j);
      if (!any(v >= t[0])) continue;  // most of the gallery, for a trained network
      for (int i = 0; i < 4; ++i) found[i] += v >= t[i];
    }
    for (int i = 0; i < lanes; ++i) {
      std::int32_t total = 0;
      for (int w = 0; w < W; ++w) total -= static_cast<std::int32_t>(found[i][w]);
      for (std::int64_t rest = j; rest < count; ++rest) total += s[rest] >= theta[k + i];
      above[k + i] += total;
    }
  }
}

template <class T>
FASTDML_FN void collect_nearest(const Task<T>& task, std::int64_t i, const T* s, std::int64_t count,
                                std::int64_t first) {
  constexpr int W = kWidth<T>;
  Neighbour<T>* const found = task.found + i * task.capacity;
  std::int32_t n = task.found_count[i];
  T bar = task.bar[i];
  const auto add = [&](std::int64_t j) {
    found[n++] = {s[j], static_cast<std::int32_t>(first + j)};
    if (n == task.capacity) bar = keep_nearest(found, n, task.k);
  };
  std::int64_t j = 0;
  for (; j + W <= count; j += W) {
    if (!any(load(s + j) > bar)) continue;
    for (int w = 0; w < W; ++w)
      if (s[j + w] > bar) add(j + w);
  }
  for (; j < count; ++j)
    if (s[j] > bar) add(j);
  task.found_count[i] = n;
  task.bar[i] = bar;
}

template <class T>
FASTDML_FN double spread(const Task<T>& task, const T* s, std::int64_t count) {
  constexpr int W = kWidth<T>;
  Vector<T> sum{};
  std::int64_t j = 0;
  for (; j + W <= count; j += W) sum += exp(load(s + j) * task.spread_by + task.spread_shift);
  double total = 0;
  for (int w = 0; w < W; ++w) total += sum[w];
  for (; j < count; ++j)
    if (s[j] > lowest<T>()) total += exp(s[j] * task.spread_by + task.spread_shift);
  return total;
}

// Row i of the block: its scores s of gallery rows first, first + 1, ...
template <class T>
FASTDML_FN void fold_row(const Task<T>& task, std::int64_t i, T* s, std::int64_t count, std::int64_t first,
                         std::uint32_t* cells) {
  const std::int64_t own = task.own[i] - first;
  if (own >= 0 && own < count) s[own] = -std::numeric_limits<T>::infinity();
  if (task.k > 0) collect_nearest(task, i, s, count, first);
  if (task.theta) {
    const std::int64_t at = task.start[i], thresholds = task.start[i + 1] - at;
    if (thresholds > kFewThresholds)
      each_place(s, count, task.theta + at, task.bin + at + i, static_cast<std::int32_t>(thresholds),
                 task.theta[at], task.bin_by[i], [&](T, std::int32_t u) { ++task.above[at + u - 1]; });
    else
      count_above(s, count, task.theta + at, thresholds, task.above + at);
  }
  const std::int64_t from = !task.half || own < 0 ? 0 : own + 1 < count ? own + 1 : count;
  if (task.pairs.count > 0) {
    const Ladder<T>& p = task.pairs;
    each_place(s + from, count - from, p.theta, p.bin, p.bins, p.low, p.by, [&](T v, std::int32_t u) {
      ++cells[2 * u - (p.theta[u - 1] == v)];
    });
  }
  if (task.spread) task.spread[i] += spread(task, s + from, count - from);
}

template <class T, bool kDifference>
FASTDML_FN void fold_panels(const Task<T>& task, const Tile<T>& tile, std::int64_t begin, std::int64_t end,
                            std::uint32_t* cells, T* buffer) {
  const std::int64_t strip = strip_columns(task.dim, kPanel<T>);
  for (std::int64_t from = 0; from < tile.rows; from += strip) {
    const std::int64_t count = strip < tile.rows - from ? strip : tile.rows - from;
    for (std::int64_t panel = begin; panel < end; ++panel) {
      const T* queries = task.queries + panel * kQueryRows * task.dim;
      for (std::int64_t j = 0; j < count; j += kPanel<T>)
        panel_scores<T, kDifference, kQueryRows>(queries, kQueryRows, tile.panels + (from + j) * task.dim,
                                                 task.dim, buffer + j, strip);
      for (std::int64_t i = panel * kQueryRows; i < task.rows && i < (panel + 1) * kQueryRows; ++i)
        fold_row(task, i, buffer + (i - panel * kQueryRows) * strip, count, tile.first + from, cells);
    }
  }
}

template <class T>
void fold(const Task<T>& task, const Tile<T>& tile, std::int64_t begin, std::int64_t end,
          std::uint32_t* cells, T* buffer) {
  if (task.difference)
    fold_panels<T, true>(task, tile, begin, end, cells, buffer);
  else
    fold_panels<T, false>(task, tile, begin, end, cells, buffer);
}

// IEEE half precision, subnormal numbers included.
FASTDML_FN float from_half(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  std::uint32_t bits = (magnitude << 13) + (112u << 23);
  if (magnitude >= 0x7c00) bits += 112u << 23;  // infinity and NaN
  float x;
  if (magnitude < 0x0400)
    x = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
  else
    std::memcpy(&x, &bits, sizeof x);
  return sign ? -x : x;
}
FASTDML_FN float from_bfloat(std::uint16_t b) {
  const std::uint32_t bits = static_cast<std::uint32_t>(b) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <class T>
FASTDML_FN void pack_rows(const Rows& x, const std::int64_t* index, std::int64_t first, const T* scale,
                          std::int64_t rows, int width, T* to) {
  const auto pack = [&](auto* data, auto read) {
    const T* by = scale && !index ? scale + first : scale;
    pack_panel(index ? data : data + first * x.ld, x.ld, index, by, rows, x.dim, width, to, read);
  };
  switch (x.storage) {
    case Storage::f32:
      return pack(static_cast<const float*>(x.data), [](float v) { return static_cast<T>(v); });
    case Storage::f64:
      return pack(static_cast<const double*>(x.data), [](double v) { return static_cast<T>(v); });
    case Storage::f16:
      return pack(static_cast<const std::uint16_t*>(x.data),
                  [](std::uint16_t v) { return static_cast<T>(from_half(v)); });
    case Storage::bf16:
      return pack(static_cast<const std::uint16_t*>(x.data),
                  [](std::uint16_t v) { return static_cast<T>(from_bfloat(v)); });
  }
}

template <class T>
void pack(const Rows& x, const T* scale, bool queries, std::int64_t begin, std::int64_t end, T* to) {
  const int width = queries ? kQueryRows : kPanel<T>;
  for (std::int64_t panel = begin; panel < end; ++panel) {
    const std::int64_t first = panel * width, rows = x.count - first < width ? x.count - first : width;
    pack_rows(x, nullptr, first, scale, rows, width, to + first * x.dim);
  }
}

template <class T>
void pair_scores(const Task<T>& task, const Rows& gallery, const T* scale, const std::int64_t* ids,
                 const PairJob& job, T* scratch, std::int64_t* next, T* theta) {
  constexpr int P = kPanel<T>;
  T scores[P];
  for (std::int64_t from = job.list_from; from < job.list_to; from += P) {
    const std::int64_t rows = job.list_to - from < P ? job.list_to - from : P;
    pack_rows(gallery, ids + from, 0, scale, rows, P, scratch);
    for (std::int64_t i = job.query_from; i < job.query_to; ++i) {
      const T* query = task.queries + i / kQueryRows * kQueryRows * task.dim + i % kQueryRows;
      if (task.difference)
        panel_scores<T, true, 1>(query, kQueryRows, scratch, task.dim, scores, P);
      else
        panel_scores<T, false, 1>(query, kQueryRows, scratch, task.dim, scores, P);
      for (std::int64_t j = 0; j < rows; ++j)
        if (ids[from + j] != task.own[i]) theta[next[i]++] = scores[j];
    }
  }
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
