// One row of scores, a strip of the gallery at a time, folded into what is kept of its query.
#pragma once
#include <limits>

#include "panel.h"
#include "sweep.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// The number of thresholds <= s. b: bin of s. Few bins hold more than two thresholds; for the others this has
// no branch that depends on s, which would be foreseen as seldom as s itself.
template <class T>
FASTDML_FN std::int32_t place(const T* theta, const std::int32_t* bin, std::int32_t b, T s) {
  std::int32_t from = bin[b], to = bin[b + 1];
  if (__builtin_expect(to - from <= 2, 1))
    return from + ((from < to) & (theta[from] <= s)) + ((from + 1 < to) & (theta[from + 1] <= s));
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

// Calls take(s, place of s) for the values of s[0, count), but for runs of those below the first threshold.
template <class T, class F>
FASTDML_FN void each_place(const T* s, std::int64_t count, const T* theta, const std::int32_t* bin,
                           std::int32_t bins, T by, F take) {
  constexpr int W = kWidth<T>;
  const T low = theta[0], last = static_cast<T>(bins - 1);
  typename Lane<T>::I at[W];
  std::int64_t j = 0;
  for (; j + W <= count; j += W) {
    const Vector<T> v = load(s + j);
    if (!any(v >= low)) continue;
    // In the range of the bins whatever s is: of 0 and NaN, which is -infinity times 0, max takes its first.
    const Mask<T> b =
        __builtin_convertvector(max(Vector<T>{}, min((v - low) * by, last)), Mask<T>);
    std::memcpy(at, &b, sizeof at);
    for (int i = 0; i < W; ++i)
      take(s[j + i], place(theta, bin, static_cast<std::int32_t>(at[i]), s[j + i]));
  }
  for (; j < count; ++j) {
    const auto b = static_cast<std::int32_t>(max(T(0), min((s[j] - low) * by, last)));
    take(s[j], place(theta, bin, b, s[j]));
  }
}

// Moves the values of s[0, count) that are at least `low` to the front of `to`; returns how many.
// `to` has room for a vector more than `count`.
template <class T>
FASTDML_FN std::int64_t pick(const T* s, std::int64_t count, T low, T* to) {
  std::int64_t found = 0, j = 0;
#if defined(__AVX512F__) && FASTDML_VECTOR_BYTES == 64
  for (; j + kWidth<T> <= count; j += kWidth<T>) {
    const Vector<T> v = load(s + j);
    if constexpr (sizeof(T) == 4) {
      const __mmask16 m = _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(low), _CMP_GE_OQ);
      store(to + found, (Vector<T>)_mm512_maskz_compress_ps(m, (__m512)v));
      found += __builtin_popcount(m);
    } else {
      const __mmask8 m = _mm512_cmp_pd_mask((__m512d)v, _mm512_set1_pd(low), _CMP_GE_OQ);
      store(to + found, (Vector<T>)_mm512_maskz_compress_pd(m, (__m512d)v));
      found += __builtin_popcount(m);
    }
  }
#endif
  for (; j < count; ++j) {
    to[found] = s[j];
    found += s[j] >= low;
  }
  return found;
}

// Counts s[0, count), all at least the first threshold, in cells: 2 u + 1 at threshold u, 2 u + 2 behind it.
// bins: room for their bins, then their cells: found apart from counting, so that a count which waits for the
// one before it in the same cell holds up no look-up. Bins that hold at most two thresholds are looked up without
// a branch on the score.
template <class T>
FASTDML_FN void count_cells(const T* s, std::int64_t count, const Ladder<T>& ladder, std::uint32_t* cells,
                            T* bins) {
  using I = typename Lane<T>::I;
  const T low = ladder.theta[0], last = static_cast<T>(ladder.bins - 1);
  for (std::int64_t j = 0; j < count; j += kWidth<T>) {  // `s` and `bins` have room for a vector more
    const Mask<T> b = __builtin_convertvector(max(Vector<T>{}, min((load(s + j) - low) * ladder.by, last)),
                                              Mask<T>);
    std::memcpy(bins + j, &b, sizeof b);
  }
  const T* const theta = ladder.theta;
  const std::int32_t* const bin = ladder.bin;
  for (std::int64_t j = 0; j < count; ++j) {
    I b;
    std::memcpy(&b, bins + j, sizeof b);
    const T v = s[j];
    const std::int32_t first = bin[b];
    I cell;
    if (__builtin_expect(first >= 0, 1)) {
      const T t = theta[first], next = theta[first + 1];
      cell = 2 * first + (t <= v) + (t < v) + (next <= v) + (next < v);
    } else {
      std::int32_t from = first & ~kCrowded, to = bin[b + 1] & ~kCrowded;
      while (from < to) {
        const std::int32_t middle = from + (to - from) / 2;
        if (theta[middle] <= v)
          from = middle + 1;
        else
          to = middle;
      }
      cell = 2 * from - (from > 0 && theta[from - 1] == v);
    }
    std::memcpy(bins + j, &cell, sizeof cell);
  }
  for (std::int64_t j = 0; j < count; ++j) {
    I cell;
    std::memcpy(&cell, bins + j, sizeof cell);
    ++cells[cell];
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

// Row i of the block: its scores s of gallery rows first, first + 1, ... picked: scratch.
template <class T>
FASTDML_FN void fold_row(const Task<T>& task, std::int64_t i, T* s, std::int64_t count, std::int64_t first,
                         std::uint32_t* cells, T* picked) {
  const std::int64_t own = task.own[i] - first;
  if (own >= 0 && own < count) s[own] = -std::numeric_limits<T>::infinity();
  if (task.k > 0) collect_nearest(task, i, s, count, first);
  if (task.theta) {
    const std::int64_t at = task.start[i], thresholds = task.start[i + 1] - at;
    if (thresholds > kFewThresholds) {
      std::int32_t below = 0;
      each_place(s, count, task.theta + at, task.bin + at + i, static_cast<std::int32_t>(bins_of(thresholds)),
                 task.bin_by[i],
                 [&](T, std::int32_t u) { ++*(u > 0 ? task.above + at + u - 1 : &below); });
    } else {
      count_above(s, count, task.theta + at, thresholds, task.above + at);
    }
  }
  const std::int64_t from = !task.half || own < 0 ? 0 : own + 1 < count ? own + 1 : count;
  if (task.pairs.count > 0) {
    const std::int64_t found = pick(s + from, count - from, task.pairs.theta[0], picked);
    count_cells(picked, found, task.pairs, cells, picked + kPickedSize / 2);
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
        fold_row(task, i, buffer + (i - panel * kQueryRows) * strip, count, tile.first + from, cells,
                 buffer + kBufferSize);
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
