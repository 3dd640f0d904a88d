// The row of CUDA: the words of rows/row.h for a team of threads that shares one row.
//
// Every thread runs the functor and holds the same results; pairs are dealt out in vectors of 16
// bytes, and folded in a fixed order, so that two runs agree bit for bit. The row stays as it came
// from the product: scales and distances are applied where a pair is read and undone where its weight
// is written, which spares two visits of the row.
#pragma once
#include "lanes.cuh"
#include "launch.h"
#include "sorting.cuh"
#include "team.cuh"

// Set by the build for losses whose header uses lists or arrays: those need room of their own.
#ifndef FASTDML_LISTS
#define FASTDML_LISTS 1
#endif
// ... and for losses that are made on distances: those have forms of their own.
#ifndef FASTDML_DISTANCES
#define FASTDML_DISTANCES 1
#endif

namespace fastdml {

inline namespace FASTDML_ISA {

// One pair, as the lambdas of a functor see it.
template <class T>
struct Pairs {
  T s;
  bool positive, negative;
  const Block<T>* block;
  const T* teacher_row;
  int j;

  FASTDML_FN T index() const { return static_cast<T>(j); }
  FASTDML_FN T teacher() const { return teacher_row[j]; }
  FASTDML_FN T column(int k) const { return block->col_values[k * block->cols + j]; }
};

// Bump allocator for the short arrays of one row, in memory that the team shares.
template <class T>
struct Arena {
  T* base = nullptr;
  int used = 0;
  FASTDML_FN T* take(int n) {
    T* p = base + used;
    used += n;
    return p;
  }
};

// Sums per threshold: list[k][i] is the i-th sum of threshold k.
template <class T, int N>
struct Sums {
  Values<T, N>* v;
  FASTDML_FN const Values<T, N>& operator[](int k) const { return v[k]; }
};

// 16 bytes at once.
template <class T, int W>
struct alignas(sizeof(T) * W) Vector {
  T v[W];
};

// The nearest bfloat16, ties to even. Half precision has too small a range for weights.
FASTDML_FN std::uint16_t to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (bits & 0x7fffffffu) > 0x7f800000u
             ? static_cast<std::uint16_t>((bits >> 16) | 0x40u)  // a NaN stays one
             : static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Two of them, the first in the lower half: one instruction on the device, whose NaN is another.
FASTDML_FN std::uint32_t to_bfloat16(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return to_bfloat16(low) | static_cast<std::uint32_t>(to_bfloat16(high)) << 16;
#endif
}

// 16 bytes of global memory into shared memory, without a register between; what a thread has copied it
// may read after `copied`.
FASTDML_FN void copy(void* to, const void* from) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
#else
  std::memcpy(to, from, 16);
#endif
}
FASTDML_FN void copied() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

struct Unsorted {};

// What the executor puts between products and pairs, and where weights go: known when a row is compiled, or
// (AnyForm) asked for every pair. Fixed is what most calls have: cosines in float32, and distances of scaled
// embeddings for losses that are made on these.
struct AnyForm {
  static constexpr bool fixed = false;
  static constexpr Metric metric = Metric::product;  // unused, as is the type
  static constexpr WeightType type = WeightType::same;
};
template <WeightType kType>
struct Cosine {
  static constexpr bool fixed = true;
  static constexpr Metric metric = Metric::product;
  static constexpr WeightType type = kType;
};
template <WeightType kType>
struct Distance {
  static constexpr bool fixed = true;
  static constexpr Metric metric = Metric::distance;
  static constexpr WeightType type = kType;
};

template <template <WeightType> class Form, class F>
auto by_type(const Target& target, F f) {
  return target.weights && target.type == WeightType::bfloat16 ? f(Form<WeightType::bfloat16>{})
                                                               : f(Form<WeightType::same>{});
}
// f(form) with the form of a call.
template <class T, class F>
auto by_form(const Block<T>& b, const Target& target, F f) {
  if constexpr (sizeof(T) == 4) {
    const bool scaled = b.row_scale && b.col_scale && b.row_class && b.col_class;
    if (scaled && b.metric == Metric::product) return by_type<Cosine>(target, f);
    if constexpr (FASTDML_DISTANCES)
      if (scaled && b.metric == Metric::distance) return by_type<Distance>(target, f);
  }
  return f(AnyForm{});
}

// kSorted: the row has been sorted by the keys that the functor asked for.
template <class T, class Team, bool kSorted = false, class Form = AnyForm>
class Row {
 public:
  using Sorted = std::conditional_t<kSorted, SortedRow<T>, Unsorted>;
  static constexpr int W = 16 / sizeof(T);
  // Vectors of a thread in flight at once: enough to hide the latency of the cache.
  static constexpr int U = sizeof(T) == 4 ? 2 : 1;

  // own_weight: of the row's loss in the result, where it has one. scratch, arena: shared memory.
  // sorted: the row in order. held: how many columns of the row, whole vectors, fit into `copy_of_row`.
  FASTDML_FN Row(const Block<T>& block, const Target& target, Team& team, int i, T own_weight,
                 T* scratch, T* arena, const Sorted& sorted = {}, T* copy_of_row = nullptr, int held = 0)
      : block_(block),
        team_(team),
        scratch_(scratch),
        arena_{arena},
        sorted_(sorted),
        s_(block.s + i * block.ld),
        n_(static_cast<int>(block.cols)),
        i_(i),
        self_(static_cast<int>(own_column(block, i))),
        class_(Form::fixed || block.row_class ? block.row_class[i] : 0),
        row_scale_(Form::fixed || block.row_scale ? block.row_scale[i] : T(1)),
        row_square_(metric() == Metric::product ? T(0) : block.row_square[i]),
        own_weight_(own_weight),
        teacher_(block.teacher ? block.teacher + i * block.teacher_ld : nullptr),
        type_(Form::fixed        ? Form::type
              : target.weights ? target.type
                               : WeightType::same) {
    weights_ld_ = target.weights ? target.ld : block.ld;
    weights_ = target.weights ? static_cast<char*>(target.weights) +
                                    i * target.ld * (type() == WeightType::same ? sizeof(T) : 2)
                              : reinterpret_cast<char*>(s_);
    whole_ = aligned() ? n_ / W * W : 0;
    hold(copy_of_row, held);
    self_vector_ = self_ >= 0 && self_ < whole_ ? self_ / W * W : -1;
    own_ = self_ >= 0 ? in(s_[self_], self_) : T(0);
  }

  FASTDML_FN T scalar(int k) const { return block_.scalars[k]; }
  FASTDML_FN T value(int k) const { return block_.row_values[i_ * block_.row_count + k]; }
  FASTDML_FN T weight(int k, int outputs) const {
    return block_.weight * (block_.row_weight ? block_.row_weight[i_ * outputs + k] : T(1));
  }
  FASTDML_FN void d_scalar(int k, T v) {
    if (block_.d_scalars && team_.thread() == 0)
      block_.d_scalars[i_ * block_.scalar_count + k] = v * own_weight_;
  }
  FASTDML_FN void d_value(int k, T v) {
    if (block_.d_row_values && team_.thread() == 0)
      block_.d_row_values[i_ * block_.row_count + k] = v * own_weight_;
  }
  FASTDML_FN bool wants_weights() const { return block_.gradient; }
  FASTDML_FN std::int64_t candidates() const { return n_ - (self_ >= 0); }
  FASTDML_FN bool has_own() const { return self_ >= 0; }
  FASTDML_FN T own() const { return own_; }
  FASTDML_FN void add_own(T g) {
    if (block_.gradient && team_.thread() == 0) add_weight(self_, g, own_);
    team_.sync();
  }

  template <class F, class... Ops>
  FASTDML_FN auto reduce(F f, Ops... ops) {
    constexpr int N = sizeof...(Ops);
    Values<T, N> total{{identity<T>(ops)...}};
    visit<U>([&](const Pairs<T>& p) {
      const auto x = f(p);
      int i = 0;
      ((total[i] = combine(ops, total[i], static_cast<T>(x[i])), ++i), ...);
    });
    fold(total, ops...);
    return total;
  }

  template <class F>
  FASTDML_FN void map(F f) {
    write<U>([&](const auto& p, auto& g) {
#pragma unroll
      for (int l = 0; l < g.count; ++l) g.v[l] = f(p.v[l]);
    });
  }

  template <class F>
  FASTDML_FN void d_column(int k, F f) {
    if (!block_.d_columns) return;
    T* const to = block_.d_columns + (k * block_.rows + i_) * block_.cols;
    visit<1>([&](const Pairs<T>& p) { to[p.j] = f(p); });
  }

  // Thresholds in shared memory: the row's positives, whose values are copied because map() overwrites
  // the row they came from, or values that are no pairs.
  class List {
   public:
    FASTDML_FN int size() const { return n_; }
    FASTDML_FN T operator[](int k) const { return theta_[k]; }

    // f(k) runs on one thread only; what it writes into arrays at k is seen by all afterwards.
    template <class F>
    FASTDML_FN T sum(F f) const {
      Values<T, 1> total{{T(0)}};
      for (int k = row_.team_.thread(); k < n_; k += row_.team_.size()) total[0] += f(k);
      row_.fold(total, Sum{});
      row_.team_.sync();
      return total[0];
    }
    template <class F>
    FASTDML_FN void each(F f) const {
      for (int k = row_.team_.thread(); k < n_; k += row_.team_.size()) f(k);
      row_.team_.sync();
    }
    template <class F>
    FASTDML_FN auto compare(F f) {
      return compare(*this, f);
    }
    template <class F>
    FASTDML_FN auto compare(const List& other, F f) {
      constexpr int N = sizeof(decltype(f(T(0), Pairs<T>{}))) / sizeof(T);
      auto* out = reinterpret_cast<Values<T, N>*>(row_.arena_.take(N * other.n_));
      for (int k = row_.team_.thread(); k < other.n_; k += row_.team_.size()) {
        Values<T, N> total{};
        for (int m = 0; m < n_; ++m) {
          const auto y = f(theta_[m] - other.theta_[k], positive(theta_[m]));
          for (int i = 0; i < N; ++i) total[i] += y[i];
        }
        out[k] = total;
      }
      row_.team_.sync();
      return Sums<T, N>{out};
    }
    template <class F>
    FASTDML_FN void add_compare(const T* c, F f) {
      add_compare(*this, c, f);
    }
    template <class F>
    FASTDML_FN void add_compare(const List& other, const T* c, F f) {
      if (!row_.block_.gradient) return;
      each([&](int m) {
        const T x = theta_[m];
        T g = 0;
        for (int k = 0; k < other.n_; ++k) g += c[k] * f(x - other.theta_[k], positive(x));
        row_.add_weight(index_[m], g, x);
      });
    }
    template <class F>
    FASTDML_FN auto shares(int n, F f) {
      List centres = row_.centres(n);
      return compare(centres, of_shares(n, f));
    }
    template <class F>
    FASTDML_FN void add_by_bin(int n, const T* by, F f) {
      if (!row_.block_.gradient) return;
      each([&](int m) {
        const int bin = moving_bin(n, f(positive(theta_[m])));
        if (bin < n) row_.add_weight(index_[m], by[bin], theta_[m]);
      });
    }
    template <class F>
    FASTDML_FN auto compare(F f, const Tail<T>& tail) {
      if constexpr (kSorted) {
        arrange();
        return row_.window_sums(*this, OfValues<T>{ascending_, n_}, f, tail);
      } else {
        return compare(*this, f);
      }
    }
    template <class F>
    FASTDML_FN void add_compare(const T* c, F f, const Tail<T>& tail) {
      if constexpr (kSorted) {
        if (!row_.block_.gradient) return;
        const auto weigh = weigher(c, f, tail);
        each([&](int m) {
          row_.add_weight(index_[m], weigh(theta_[m], positive(theta_[m])), theta_[m]);
        });
      } else {
        add_compare(*this, c, f);
      }
    }
    FASTDML_FN void add(const T* v) {
      if (!row_.block_.gradient) return;
      each([&](int k) { row_.add_weight(index_[k], v[k], theta_[k]); });
    }
    FASTDML_FN void set(const T* v) {
      if (!row_.block_.gradient) return;
      each([&](int k) {
        const int j = index_[k];
        row_.store(j, row_.out(v[k], theta_[k], row_.scale_of(j)));
      });
    }

   private:
    friend class Row;
    FASTDML_FN List(Row& row, int n) : row_(row), n_(n) { theta_ = row.arena_.take(n); }
    FASTDML_FN static Pairs<T> positive(T s) { return {s, true, false, nullptr, nullptr, 0}; }

    // The thresholds in ascending order too. Each finds its place by itself: they are few beside the pairs.
    FASTDML_FN void arrange() {
      if (ascending_) return;
      ascending_ = row_.arena_.take(n_);
      order_ = reinterpret_cast<std::int32_t*>(row_.arena_.take(n_));
      each([&](int k) {
        const auto key = to_key(theta_[k]);
        int place = 0;
        for (int m = 0; m < n_; ++m) {
          const auto other = to_key(theta_[m]);
          place += (other < key) | ((other == key) & (m < k));
        }
        ascending_[place] = theta_[k];
        order_[place] = k;
      });
    }

    // Gives sum_k c_k f(x - theta_k, p) for a value x, where f is straight but for the tail's window: one
    // by one the thresholds whose windows hold x, the others by sums.
    template <class F>
    struct Weigher {
      const T *theta, *c, *below, *above;
      int n;
      Tail<T> tail;
      F f;

      FASTDML_FN T operator()(T x, const Pairs<T>& p) const {
        if (n == 0 || (tail.negatives && !p.negative)) return T(0);
        // A NaN that was anywhere in the row reaches every pair.
        if (!(x == x && theta[n - 1] == theta[n - 1] && c[0] == c[0] && c[n - 1] == c[n - 1]))
          return x + theta[n - 1] + c[0] + c[n - 1];
        const int end = count_first(n, [&](int k) { return x >= theta[k] + tail.from; });
        const int begin = count_first(end, [&](int k) { return x > theta[k] + tail.to; });
        T g = T(0);
        for (int k = begin; k < end; ++k) g += c[k] * f(x - theta[k], p);
        if (below && begin > 0) g += tail.high_rise * below[begin - 1];
        if (above && end < n) g += tail.low_rise * above[n - 1 - end];
        return g;
      }
    };
    template <class F>
    FASTDML_FN Weigher<F> weigher(const T* c, F f, const Tail<T>& tail) {
      arrange();
      T* by = row_.arena_.take(n_);
      each([&](int k) { by[k] = c[order_[k]]; });
      return {ascending_, by,
              tail.high_rise != T(0) ? sums_of([&](int k) { return by[k]; }) : nullptr,
              tail.low_rise != T(0) ? sums_of([&](int k) { return by[n_ - 1 - k]; }) : nullptr,
              n_, tail, f};
    }
    // Sums of value(0 ... k) for every k.
    template <class Value>
    FASTDML_FN const T* sums_of(Value value) {
      T *a = row_.arena_.take(n_), *b = row_.arena_.take(n_);
      for (int k = row_.team_.thread(); k < n_; k += row_.team_.size()) a[k] = value(k);
      return running_sums(row_.team_, a, b, n_);
    }

    Row& row_;
    T* theta_;
    std::int32_t* index_ = nullptr;
    int n_ = 0;
    T* ascending_ = nullptr;
    std::int32_t* order_ = nullptr;
  };

  FASTDML_FN List positives() {
    static_assert(FASTDML_LISTS || sizeof(T) == 0,
                  "csrc/build.py takes this loss for one without lists");
    // A class that no candidate has (class_ < 0) owns no positives.
    const std::int32_t* start = block_.class_start + (class_ < 0 ? 0 : class_);
    const int members = class_ < 0 ? 0 : start[1] - start[0];
    const std::int32_t* order = block_.class_order + start[0];
    const bool own = members > 0 && self_ >= 0 && block_.col_class[self_] == class_;
    std::int32_t* index = reinterpret_cast<std::int32_t*>(arena_.take(members));
    List list(*this, members - own);
    list.index_ = index;
    for (int k = team_.thread(); k < members; k += team_.size()) {
      const int j = order[k];  // ascending: everything beyond the own pair moves up by one
      if (own && j == self_) continue;
      const int to = k - (own && j > self_);
      index[to] = j;
      list.theta_[to] = in(s_[j], j);
    }
    team_.sync();
    return list;
  }

  template <class F>
  FASTDML_FN List list(int n, F f) {
    static_assert(FASTDML_LISTS || sizeof(T) == 0,
                  "csrc/build.py takes this loss for one without lists");
    List made(*this, n);
    for (int k = team_.thread(); k < n; k += team_.size()) made.theta_[k] = f(k);
    team_.sync();
    return made;
  }

  FASTDML_FN T* array(int n) {
    static_assert(FASTDML_LISTS || sizeof(T) == 0,
                  "csrc/build.py takes this loss for one without lists");
    return arena_.take(n);
  }

  // A warp adds up a run, and makes a draw.
  template <class F, class At>
  FASTDML_FN List draw(int n, F weight, At at) {
    static_assert(FASTDML_LISTS || sizeof(T) == 0,
                  "csrc/build.py takes this loss for one without lists");
    const int length = static_cast<int>(draw_run(n_)), runs = (n_ + length - 1) / length;
    const int lane = team_.thread() % kWarp, warp = team_.thread() / kWarp, warps = team_.size() / kWarp;
    const auto weight_at = [&](int j) { return j == self_ ? T(0) : static_cast<T>(weight(load(j))); };
    double* const sums = doubles(2 * kDrawRuns);
    for (int r = warp; r < runs; r += warps) {
      double sum = 0;
      for (int j = r * length + lane; j < (r + 1) * length && j < n_; j += kWarp) sum += weight_at(j);
#pragma unroll
      for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += team_.from_lane(sum, mask);
      if (lane == 0) sums[r] = sum;
    }
    const double* const upto = running_sums(team_, sums, sums + kDrawRuns, runs);
    List made(*this, n);
    made.index_ = reinterpret_cast<std::int32_t*>(arena_.take(n));
    for (int k = warp; k < n; k += warps) {
      const Values<double, 2> u = at(k);
      int r = count_first(runs, [&](int i) { return upto[i] <= u[0] * upto[runs - 1]; });
      if (r == runs) r = runs - 1;  // of NaN
      while (r > 0 && upto[r] == upto[r - 1]) --r;
      const int begin = r * length, end = begin + length < n_ ? begin + length : n_;
      double sum = 0, reached = 0;
      for (int j = begin; j < end; ++j) sum += weight_at(j);
      int found = begin;
      for (int j = begin; j < end && !(reached > u[1] * sum); ++j) {
        const T w = weight_at(j);
        if (w > T(0)) found = j;
        reached += w;
      }
      if (lane == 0) {
        made.index_[k] = found;
        made.theta_[k] = in(s_[found], found);
      }
    }
    team_.sync();
    return made;
  }
  FASTDML_FN void map_at(const List& list, const T* v) {
    write<U>([&](const auto& p, auto& g) {
#pragma unroll
      for (int l = 0; l < g.count; ++l) g.v[l] = T(0);
      for (int k = 0; k < list.n_; ++k) {
#pragma unroll
        for (int l = 0; l < g.count; ++l) g.v[l] += p.v[l].j == list.index_[k] ? v[k] : T(0);
      }
    });
  }

  // The sort that was made before is by the same key.
  template <class Key>
  FASTDML_FN List first(int n, Key) {
    static_assert(FASTDML_LISTS || sizeof(T) == 0,
                  "csrc/build.py takes this loss for one without lists");
    static_assert(kSorted || sizeof(T) == 0, "this loss must declare sort_keys (rows/row.h)");
    const int most = kept(0);
    List made(*this, n < most ? n : most);
    made.index_ = reinterpret_cast<std::int32_t*>(arena_.take(made.n_));
    for (int k = team_.thread(); k < made.n_; k += team_.size()) {
      const int j = columns(0)[k];
      made.index_[k] = j;
      made.theta_[k] = in(s_[j], j);
    }
    team_.sync();
    return made;
  }

  // What the row was sorted by first: how many pairs were not left out, and the k-th smallest key.
  FASTDML_FN int ordered() const requires kSorted { return kept(0); }
  FASTDML_FN T smallest(int k) const requires kSorted { return keys(0)[k]; }

  class Order {
   public:
    FASTDML_FN T pairs() const { return pairs_; }
    FASTDML_FN T active() const { return active_; }
    FASTDML_FN T slope(const Pairs<T>& p) const { return slope_[p.j]; }

   private:
    friend class Row;
    const T* slope_;
    T pairs_, active_;
  };

  // Rows come sorted by key and by value: two queries for each pair, as on the CPU (cpu/order.h).
  template <class Key>
  FASTDML_FN Order order(Key, T margin) {
    static_assert(FASTDML_LISTS || sizeof(T) == 0,
                  "csrc/build.py takes this loss for one without lists");
    static_assert(kSorted || sizeof(T) == 0, "this loss must declare sort_keys (rows/row.h)");
    const int n = kept(0);
    const OfKeys<T> key = keys(0), x = keys(1);
    auto* const place = reinterpret_cast<std::int32_t*>(arena_.take(n_));
    T* const slope = arena_.take(n_);
    Dominance points(reinterpret_cast<std::int32_t*>(arena_.take(Dominance::room(n))), n);
    for (int r = team_.thread(); r < n; r += team_.size()) place[columns(1)[r]] = r;
    team_.sync();
    for (int t = team_.thread(); t < n; t += team_.size()) points.set(t, place[columns(0)[t]]);
    points.build(team_);
    Values<T, 2> total{};
    for (int t = team_.thread(); t < n; t += team_.size()) {
      const auto own = key.keys[t];
      const int r = points.value_at(t);
      const T v = x[r];
      // Those before `first` have smaller keys, those from `last` on larger ones.
      const int first = count_first(t, [&](int i) { return key.keys[i] < own; });
      const int last = t + count_first(n - t, [&](int i) { return key.keys[t + i] == own; });
      const int over = count_first(n, [&](int i) { return !(x[i] - v > -margin); });
      const int upto = count_first(n, [&](int i) { return v - x[i] > -margin; });
      const int leads = upto - points.below(last, upto), ends = first - points.below(first, over);
      total[0] += static_cast<T>(n - last);
      total[1] += static_cast<T>(leads);
      slope[columns(0)[t]] = static_cast<T>(leads - ends);
    }
    fold(total, Sum{}, Sum{});
    team_.sync();
    Order found;
    found.slope_ = slope;
    found.pairs_ = total[0];
    found.active_ = total[1];
    return found;
  }

  // Members of a group: where member k of group j lies, in rows below this one, and in its row.
  struct OfColumns {
    int size;
    FASTDML_FN int row(int) const { return 0; }
    FASTDML_FN int column(int j, int k) const { return j * size + k; }
    FASTDML_FN int first(int j) const { return j * size; }
  };
  struct OfRows {
    FASTDML_FN int row(int k) const { return k; }
    FASTDML_FN int column(int j, int) const { return j; }
    FASTDML_FN int first(int j) const { return j; }
  };

  // Groups of `size` members, pooled into one pair each wherever they are read: a thread takes whole
  // groups, so nothing has to be kept.
  template <class Pool, class Members>
  class Grouped {
   public:
    FASTDML_FN T scalar(int k) const { return row_.scalar(k); }
    FASTDML_FN T value(int k) const { return row_.value(k); }
    FASTDML_FN void d_scalar(int k, T v) { row_.d_scalar(k, v); }
    FASTDML_FN void d_value(int k, T v) { row_.d_value(k, v); }
    FASTDML_FN std::int64_t candidates() const { return groups_; }

    template <class F, class... Ops>
    FASTDML_FN auto reduce(F f, Ops... ops) {
      constexpr int N = sizeof...(Ops);
      Values<T, N> total{{identity<T>(ops)...}};
      for (int j = row_.team_.thread(); j < groups_; j += row_.team_.size()) {
        const auto x = f(pair(j, pooled(j)[0]));
        int i = 0;
        ((total[i] = combine(ops, total[i], static_cast<T>(x[i])), ++i), ...);
      }
      row_.fold(total, ops...);
      return total;
    }

    template <class F>
    FASTDML_FN void map(F f) {
      if (!row_.block_.gradient) return;
      for (int j = row_.team_.thread(); j < groups_; j += row_.team_.size()) {
        const auto kept = pooled(j);
        const T g = f(pair(j, kept[0]));
        for (int k = 0; k < size_; ++k) {
          const int r = members_.row(k), at = members_.column(j, k);
          const T x = row_.in_of(r, at);
          row_.store_of(r, at, row_.out_of(r, g * pool_.slope(x, k, kept), x, row_.scale_of(at)));
        }
      }
      row_.team_.sync();
    }

   private:
    friend class Row;
    FASTDML_FN Grouped(Row& row, int size, Pool pool, Members members, int groups)
        : row_(row), pool_(pool), members_(members), size_(size), groups_(groups) {}
    FASTDML_FN auto pooled(int j) const {
      return pool_([&](int k) { return row_.in_of(members_.row(k), members_.column(j, k)); }, size_);
    }
    FASTDML_FN Pairs<T> pair(int j, T s) const {
      return row_.pair(s, row_.block_.col_class[members_.first(j)] == row_.class_, j);
    }
    Row& row_;
    Pool pool_;
    Members members_;
    int size_, groups_;
  };

  template <class Pool>
  FASTDML_FN auto group(int size, Pool pool) {
    return Grouped<Pool, OfColumns>(*this, size, pool, {size}, n_ / size);
  }

  template <class Pool>
  FASTDML_FN auto stack(int size, Pool pool) {
    const int left = static_cast<int>(block_.rows) - i_;  // see cpu/row.h
    return Grouped<Pool, OfRows>(*this, size < left ? size : left, pool, {}, n_);
  }

  template <class F>
  FASTDML_FN auto compare(List& list, F f) {
    constexpr int N = sizeof(decltype(f(T(0), Pairs<T>{}))) / sizeof(T);
    auto* out = reinterpret_cast<Values<T, N>*>(arena_.take(N * list.n_));
    int k = 0;
    for (; k + kGroup <= list.n_; k += kGroup)
      sum_group<N, true>(list.theta_ + k, kGroup, f, out + k);
    if (k < list.n_) sum_group<N, false>(list.theta_ + k, list.n_ - k, f, out + k);
    team_.sync();
    return Sums<T, N>{out};
  }

  template <class F>
  FASTDML_FN auto compare(List& list, F f, const Tail<T>& tail) {
    if constexpr (kSorted)
      return window_sums(list, keys(0), f, tail);
    else
      return compare(list, f);
  }
  // The row in its own order: the thresholds are in order, and what a pair takes from them is found
  // from its value.
  template <class F>
  FASTDML_FN void map_compare(List& list, const T* c, F f, const Tail<T>& tail) {
    if constexpr (kSorted) {
      if (!block_.gradient) return;
      const auto weigh = list.weigher(c, f, tail);
      write<1>([&](const auto& p, auto& g) {
#pragma unroll
        for (int l = 0; l < g.count; ++l) g.v[l] = weigh(p.v[l].s, p.v[l]);
      });
    } else {
      map_compare(list, c, f);
    }
  }

  template <class F>
  FASTDML_FN void map_compare(List& list, const T* c, F f) {
    write<U>([&](const auto& p, auto& g) {
#pragma unroll
      for (int l = 0; l < g.count; ++l) g.v[l] = T(0);
      for (int k = 0; k < list.n_; ++k) {
        const T theta = list.theta_[k], by = c[k];
#pragma unroll
        for (int l = 0; l < g.count; ++l) g.v[l] += by * f(p.v[l].s - theta, p.v[l]);
      }
    });
  }

  // Every centre visits the row: adding to cells in the order of threads would not repeat bit for bit.
  template <class F>
  FASTDML_FN auto shares(int n, F f) {
    List of = centres(n);
    return compare(of, of_shares(n, f));
  }
  template <class F>
  FASTDML_FN void map_by_bin(int n, const T* by, F f) {
    write<U>([&](const auto& p, auto& g) {
#pragma unroll
      for (int l = 0; l < g.count; ++l) {
        const int bin = moving_bin(n, f(p.v[l]));
        g.v[l] = bin < n ? by[bin] : T(0);
      }
    });
  }

  // The keys of the row's pairs, for the sort that comes before its loss.
  template <class Loss>
  FASTDML_FN void write_keys(const Loss& loss, const SortedRow<T>& to) {
    using Keys = decltype(loss.sort_keys(std::declval<const Pairs<T>&>()));
    constexpr int N = sizeof(Keys) / sizeof(T);
    Values<T, N> kept{};
    for (int j = team_.thread(); j < n_; j += team_.size()) {
      const Keys keys = loss.sort_keys(load(j));
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const auto key = j == self_ ? kLeftOut<T> : to_key(keys[k]);
        to.keys[k][j] = key;
        if (to.columns[k]) to.columns[k][j] = j;
        kept[k] += key == kLeftOut<T> ? T(0) : T(1);
      }
    }
    fold_all(kept, std::make_index_sequence<N>{});
    if (team_.thread() == 0)
#pragma unroll
      for (int k = 0; k < N; ++k) *to.kept[k] = static_cast<std::int32_t>(kept[k]);
  }

 private:
  static constexpr int kGroup = 4;  // thresholds that share a visit of the row

  // Bins and their centres as in cpu/bins.h.
  FASTDML_FN List centres(int n) {
    const T width = T(2) / n;
    return list(n + 1, [=](int k) { return width * k - T(1); });
  }
  FASTDML_FN static int moving_bin(int n, T v) {
    const T rate = T(n) / 2;  // bins a unit: exact
    return v < T(-1) || v > T(1) ? n : static_cast<int>(max(T(0), min((v + T(1)) * rate, static_cast<T>(n - 1))));
  }
  // The share of a pair in a centre that its similarity is t away from.
  template <class F>
  FASTDML_FN static auto of_shares(int n, F f) {
    const T rate = T(n) / 2;
    return [=](T t, const Pairs<T>& p) {
      // By the centre's number: the centre itself, rounded, would move all values of a bin alike.
      const T v = f(p), k = static_cast<T>(static_cast<int>((p.s - t + T(1)) * rate + T(0.5)));
      const T away = max(T(-1), min(v, T(1))) * rate + (rate - k);
      return values(v < lowest<T>() / 2 ? T(0) : max(T(1) - abs(away), T(0)));
    };
  }

  FASTDML_FN int kept(int k) const { return *sorted_.kept[k]; }
  FASTDML_FN OfKeys<T> keys(int k) const { return {sorted_.keys[k], kept(k)}; }
  FASTDML_FN const std::int32_t* columns(int k) const { return sorted_.columns[k]; }

  // Sums of f(x_i - theta_k) over ordered values x, a threshold a warp: f itself inside its window, and
  // the straight parts outside from the number and the sum of the values there.
  template <class Ordered, class F>
  FASTDML_FN auto window_sums(const List& list, const Ordered& x, F f, const Tail<T>& tail) {
    constexpr int N = sizeof(decltype(f(T(0), Pairs<T>{}))) / sizeof(T);
    auto* out = reinterpret_cast<Values<T, N>*>(arena_.take(N * list.n_));
    const bool low_rises = tail.low_rise != T(0), high_rises = tail.high_rise != T(0);
    const int width = (x.n + kMarks - 1) / kMarks, lane = team_.thread() % kWarp;
    const double* marks = low_rises || high_rises ? marks_of(x, width) : nullptr;
    // A NaN is the last of all values. It reaches every threshold.
    const T last = x.n > 0 ? x[x.n - 1] : T(0), poison = last == last ? T(0) : last;
    for (int k = team_.thread() / kWarp; k < list.n_; k += team_.size() / kWarp) {
      const T theta = list.theta_[k], from = theta + tail.from, to = theta + tail.to;
      const int low = count_first(team_, x.n, [&](int i) { return x[i] < from; });
      const int high = low + count_first(team_, x.n - low, [&](int i) { return x[low + i] <= to; });
      Values<T, N> total{};
      for (int i = low + lane; i < high; i += kWarp) {
        const T v = x[i];
        const auto y = f(v - theta, Pairs<T>{v, !tail.negatives, tail.negatives, nullptr, nullptr, 0});
#pragma unroll
        for (int l = 0; l < N; ++l) total[l] += y[l];
      }
      butterfly_all(total, std::make_index_sequence<N>{});
      const double under = low, over = x.n - high;
      double height = tail.low_height * under + tail.high_height * over;
      if (low_rises) height += tail.low_rise * (sum_before(x, marks, width, low) - under * theta);
      if (high_rises)
        height += tail.high_rise * (marks[kMarks - 1] - sum_before(x, marks, width, high) - over * theta);
      total[0] += static_cast<T>(height) + (theta == theta ? poison : theta);
      if constexpr (N > 1)
        total[1] += static_cast<T>(tail.low_rise * under + tail.high_rise * over) +
                    (theta == theta ? poison : theta);
      if (lane == 0) out[k] = total;
    }
    team_.sync();
    return Sums<T, N>{out};
  }

  // Room for n of them in the arena.
  FASTDML_FN double* doubles(int n) {
    T* const room = arena_.take((n + 1) * static_cast<int>(sizeof(double) / sizeof(T)));
    return reinterpret_cast<double*>((reinterpret_cast<std::uintptr_t>(room) + 7) / 8 * 8);
  }

  // Running sums of ordered values at kMarks places `width` apart; what lies beyond a mark is added up
  // where it is asked for.
  static constexpr int kMarks = 64;
  template <class Ordered>
  FASTDML_FN const double* marks_of(const Ordered& x, int width) {
    double* const a = doubles(2 * kMarks);
    const int lane = team_.thread() % kWarp;
    for (int mark = team_.thread() / kWarp; mark < kMarks; mark += team_.size() / kWarp) {
      const double sum = sum_between(x, mark * width, (mark + 1) * width);
      if (lane == 0) a[mark] = sum;
    }
    return running_sums(team_, a, a + kMarks, kMarks);
  }
  template <class Ordered>
  FASTDML_FN double sum_before(const Ordered& x, const double* marks, int width, int end) const {
    const int mark = width > 0 ? end / width : 0;
    return (mark > 0 ? marks[mark - 1] : 0.0) + sum_between(x, mark * width, end);
  }
  // By a warp.
  template <class Ordered>
  FASTDML_FN double sum_between(const Ordered& x, int begin, int end) const {
    double sum = 0;
    for (int i = begin + team_.thread() % kWarp; i < end && i < x.n; i += kWarp) sum += x[i];
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += team_.from_lane(sum, mask);
    return sum;
  }

  // Whether everything a vector of columns is read from and written to lies on 16 bytes.
  FASTDML_FN bool aligned() const {
    const auto on = [](const void* p, int bytes) {
      return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
    };
    return on(s_, 16) && on(weights_, type() == WeightType::same ? 16 : 2 * W) &&
           on(block_.col_class, 4 * W) && on(block_.col_scale, 16) && on(block_.col_square, 16);
  }

  FASTDML_FN Metric metric() const { return Form::fixed ? Form::metric : block_.metric; }
  FASTDML_FN bool scaled() const { return Form::fixed || block_.col_scale; }
  FASTDML_FN WeightType type() const { return Form::fixed ? Form::type : type_; }

  // A product as the functor sees it. `scale` and `square` are those of its column.
  FASTDML_FN T transform(T product, T scale, T square) const {
    return compared(product * (scale * row_scale_), row_square_ + square);
  }
  // A scaled product, with the sum of both squares.
  FASTDML_FN T compared(T scaled, T total) const {
    if (metric() == Metric::product) return scaled;
    // What is left of two nearly equal numbers is rounding: it counts as 0.
    const T tiny = sizeof(T) == 4 ? T(4 * 1.1920929e-07) : T(4 * 2.220446049250313e-16);
    T d2 = total - T(2) * scaled;
    d2 = (d2 < tiny * total ? T(0) : d2) + block_.epsilon;
    return metric() == Metric::distance ? root(d2) : d2;
  }
  FASTDML_FN T in(T product, int j) const {
    return transform(product, scaled() ? block_.col_scale[j] : T(1),
                     metric() == Metric::product ? T(0) : block_.col_square[j]);
  }
  // The weight of the product of a pair that the functor saw as x and gave the derivative g.
  FASTDML_FN T out(T g, T x, T scale) const { return out_scaled(g, x, scale * (row_scale_ * own_weight_)); }
  FASTDML_FN T out_scaled(T g, T x, T scale) const {
    const T by = g * scale;
    if (metric() == Metric::product) return by;
    if (metric() == Metric::squared_distance) return T(-2) * by;
    return x > T(0) ? quotient(-by, x) : T(0);
  }
  FASTDML_FN T scale_of(int j) const { return scaled() ? block_.col_scale[j] : T(1); }

  // The same of the row r below this one, in a stack. Its weights are this row's loss's.
  FASTDML_FN T row_scale_of(int r) const {
    return r == 0 ? row_scale_ : Form::fixed || block_.row_scale ? block_.row_scale[i_ + r] : T(1);
  }
  FASTDML_FN T in_of(int r, int j) const {
    return compared(s_[r * block_.ld + j] * (scale_of(j) * row_scale_of(r)),
                    metric() == Metric::product ? T(0) : block_.row_square[i_ + r] + block_.col_square[j]);
  }
  FASTDML_FN T out_of(int r, T g, T x, T scale) const {
    return out_scaled(g, x, scale * (row_scale_of(r) * own_weight_));
  }
  FASTDML_FN void store_of(int r, int j, T w) { store(r * weights_ld_ + j, w); }

  template <int C>
  struct Pack {  // pairs that a thread works on together, and the scales of their columns
    static constexpr int count = C;
    Pairs<T> v[C];
    T scale[C];
  };
  template <int C>
  struct Weights {
    static constexpr int count = C;
    T v[C];
  };

  FASTDML_FN Pairs<T> pair(T s, bool same, int j) const {
    return {s, same, !same, &block_, teacher_, j};
  }
  template <class X, int width>
  FASTDML_FN static Vector<X, width> read(const X* p) {
    return *reinterpret_cast<const Vector<X, width>*>(p);
  }

  // What all rows read and none writes.
  template <class X, int width>
  FASTDML_FN static Vector<X, width> read_common(const X* p) {
#if defined(__CUDA_ARCH__)
    using Bits = std::conditional_t<sizeof(Vector<X, width>) == 16, int4, int2>;
    const Bits bits = __ldg(reinterpret_cast<const Bits*>(p));
    Vector<X, width> v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
#else
    return read<X, width>(p);
#endif
  }

  // The row is in two parts: the columns that are held in shared memory, from which the second visit on
  // nothing is read from the cache, and the rest. A thread copies the vectors that it will read itself, so
  // no barrier is needed.
  FASTDML_FN void hold(T* to, int columns) {
    if constexpr (kSorted) return;
    held_ = columns < whole_ ? columns : whole_;
    copy_ = to;
    rest_ = team_.thread() * W;
    for (; rest_ < held_; rest_ += team_.size() * W) copy(to + rest_, s_ + rest_);
    copied();
  }
  // f(from, j, end) for whole vectors V by V: this thread's own from column j on, `size` vectors apart and
  // before `end`, of a part that lies at `from`.
  template <int V, class F>
  FASTDML_FN void parts(F f) const {
    const int step = V * team_.size() * W;
    // One loop for both parts: a second would double the code.
#pragma unroll 1
    for (int part = kSorted ? 1 : 0; part < 2; ++part) {
      const T* const from = part == 0 ? copy_ : s_;
      const int end = part == 0 ? held_ : whole_;
      for (int j = !kSorted && part == 1 ? rest_ : team_.thread() * W; j < end; j += step) f(from, j, end);
    }
  }

  // V whole vectors, `stride` columns apart. Vectors out of range must not be used: they repeat the first.
  template <int V>
  FASTDML_FN void load(Pack<V * W>& pack, const T* from, int j, int end, int stride) const {
    int at[V];
#pragma unroll
    for (int u = 0; u < V; ++u) at[u] = j + u * stride < end ? j + u * stride : j;
    Vector<T, W> x[V];
    Vector<std::int32_t, W> c[V];
#pragma unroll
    for (int u = 0; u < V; ++u) x[u] = read<T, W>(from + at[u]);
    if (Form::fixed || block_.col_class) {
#pragma unroll
      for (int u = 0; u < V; ++u) c[u] = read_common<std::int32_t, W>(block_.col_class + at[u]);
    } else {
#pragma unroll
      for (int u = 0; u < V; ++u)
#pragma unroll
        for (int l = 0; l < W; ++l) c[u].v[l] = 0;
    }
#pragma unroll
    for (int k = 0; k < V * W; ++k) pack.scale[k] = T(1);
    if (scaled() || metric() != Metric::product) {
#pragma unroll
      for (int u = 0; u < V; ++u) {
        Vector<T, W> scale, square;
#pragma unroll
        for (int l = 0; l < W; ++l) scale.v[l] = T(1), square.v[l] = T(0);
        if (scaled()) scale = read_common<T, W>(block_.col_scale + at[u]);
        if (metric() != Metric::product) square = read_common<T, W>(block_.col_square + at[u]);
#pragma unroll
        for (int l = 0; l < W; ++l) {
          x[u].v[l] = transform(x[u].v[l], scale.v[l], square.v[l]);
          pack.scale[u * W + l] = scale.v[l];
        }
      }
    }
#pragma unroll
    for (int u = 0; u < V; ++u)
#pragma unroll
      for (int l = 0; l < W; ++l)
        pack.v[u * W + l] = pair(x[u].v[l], c[u].v[l] == class_, at[u] + l);
  }
  FASTDML_FN Pairs<T> load(int j) const {
    return pair(in(s_[j], j), (!Form::fixed && !block_.col_class) || block_.col_class[j] == class_, j);
  }

  // The pairs that whole vectors leave over: those beside the row's own pair and those at the end.
  FASTDML_FN int left_count() const { return W + n_ - whole_; }
  FASTDML_FN int left(int k) const {
    const int j = k < W ? (self_vector_ < 0 ? self_ : self_vector_ + k) : whole_ + k - W;
    return j == self_ ? -1 : j;
  }

  template <int V, class F>
  FASTDML_FN void visit(F f) const {
    const int stride = team_.size() * W;
    parts<V>([&](const T* from, int j, int end) {
      Pack<V * W> pack;
      load<V>(pack, from, j, end, stride);
#pragma unroll
      for (int u = 0; u < V; ++u) {
        const int at = j + u * stride;
        if (at >= end || at == self_vector_) continue;
#pragma unroll
        for (int l = 0; l < W; ++l) f(pack.v[u * W + l]);
      }
    });
    for (int k = team_.thread(); k < left_count(); k += team_.size()) {
      const int j = left(k);
      if (j >= 0) f(load(j));
    }
  }

  // Overwrites the row by weights: fill(pairs, weights) makes them, the executor's scales are added here.
  template <int V, class Fill>
  FASTDML_FN void write(Fill fill) {
    if (!block_.gradient) return;
    const int stride = team_.size() * W;
    parts<V>([&](const T* from, int j, int end) {
      Pack<V * W> pack;
      Weights<V * W> g;
      load<V>(pack, from, j, end, stride);
      fill(pack, g);
#pragma unroll
      for (int u = 0; u < V; ++u) {
        const int at = j + u * stride;
        if (at >= end || at == self_vector_) continue;
        Vector<T, W> w;
#pragma unroll
        for (int l = 0; l < W; ++l)
          w.v[l] = out(g.v[u * W + l], pack.v[u * W + l].s, pack.scale[u * W + l]);
        store(at, w);
        if (FASTDML_LISTS && type() != WeightType::same)
#pragma unroll
          for (int l = 0; l < W; ++l)
            if (pack.v[u * W + l].positive) s_[at + l] = w.v[l];
      }
    });
    for (int k = team_.thread(); k < left_count(); k += team_.size()) {
      const int j = left(k);
      if (j < 0) continue;
      Pack<1> pack;
      Weights<1> g;
      pack.v[0] = load(j);
      fill(pack, g);
      const T w = out(g.v[0], pack.v[0].s, scale_of(j));
      store(j, w);
      if (FASTDML_LISTS && pack.v[0].positive) s_[j] = w;
    }
    if (self_ >= 0 && team_.thread() == 0) {
      store(self_, T(0));
      s_[self_] = T(0);
    }
    team_.sync();
  }

  FASTDML_FN void store(int j, const Vector<T, W>& w) {
    if (type() == WeightType::same) {
      reinterpret_cast<Vector<T, W>*>(weights_)[j / W] = w;
      return;
    }
    Vector<std::uint32_t, W / 2> h;
#pragma unroll
    for (int l = 0; l < W / 2; ++l)
      h.v[l] = to_bfloat16(static_cast<float>(w.v[2 * l]), static_cast<float>(w.v[2 * l + 1]));
    reinterpret_cast<Vector<std::uint32_t, W / 2>*>(weights_)[j / W] = h;
  }
  template <class Index>
  FASTDML_FN void store(Index j, T w) {
    if (type() == WeightType::same)
      reinterpret_cast<T*>(weights_)[j] = w;
    else
      reinterpret_cast<std::uint16_t*>(weights_)[j] = to_bfloat16(static_cast<float>(w));
  }
  // Adds the derivative g to the weight of pair j, which the functor saw as x. Where weights are
  // narrow, those that may be added to (the positives' and the own one) are held in the row as well,
  // so that only the sum is rounded.
  FASTDML_FN void add_weight(int j, T g, T x) {
    const T total = s_[j] + out(g, x, scale_of(j));
    s_[j] = total;
    if (type() != WeightType::same) store(j, total);
  }

  template <int N, bool Full, class F>
  FASTDML_FN void sum_group(const T* thresholds, int count, F f, Values<T, N>* out) {
    static_assert(kGroup * N <= kMaxFold, "too many sums of a comparison");
    T theta[kGroup];
    Values<T, kGroup * N> total{};
#pragma unroll
    for (int g = 0; g < kGroup; ++g) theta[g] = thresholds[Full || g < count ? g : 0];
    visit<1>([&](const Pairs<T>& p) {
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        if (!Full && g >= count) continue;
        const auto y = f(p.s - theta[g], p);
#pragma unroll
        for (int i = 0; i < N; ++i) total[g * N + i] += y[i];
      }
    });
    fold_all(total, std::make_index_sequence<kGroup * N>{});
    if (team_.thread() < count) {
#pragma unroll
      for (int g = 0; g < kGroup; ++g)
        if (team_.thread() == g)
          for (int i = 0; i < N; ++i) out[g][i] = total[g * N + i];
    }
  }
  template <int N, std::size_t... I>
  FASTDML_FN void fold_all(Values<T, N>& total, std::index_sequence<I...>) {
    fold(total, (static_cast<void>(I), Sum{})...);
  }

  // Every thread's values become the team's. Lanes are folded in a butterfly, then one value of each
  // warp likewise: every thread gets the same bits.
  template <int N, class... Ops>
  FASTDML_FN void fold(Values<T, N>& total, Ops... ops) {
    static_assert(N == sizeof...(Ops) && N <= kMaxFold, "too many values in one fold");
    butterfly(total, ops...);
    const int warps = team_.size() / kWarp;
    if (warps == 1) return;
    T* slot = scratch_ + half_ * (kMaxFold * kMaxWarps);
    half_ ^= 1;  // late readers of the last fold do not meet the writers of this one
    const int warp = team_.thread() / kWarp, lane = team_.thread() % kWarp;
    if (lane == 0)
      for (int i = 0; i < N; ++i) slot[i * kMaxWarps + warp] = total[i];
    team_.sync();
    int i = 0;
    ((total[i] = lane < warps ? slot[i * kMaxWarps + lane] : identity<T>(ops), ++i), ...);
    butterfly(total, ops...);
  }
  template <int N, std::size_t... I>
  FASTDML_FN void butterfly_all(Values<T, N>& total, std::index_sequence<I...>) {
    butterfly(total, (static_cast<void>(I), Sum{})...);
  }
  template <int N, class... Ops>
  FASTDML_FN void butterfly(Values<T, N>& total, Ops... ops) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      int i = 0;
      ((total[i] = combine(ops, total[i], team_.from_lane(total[i], mask)), ++i), ...);
    }
  }

  const Block<T>& block_;
  Team& team_;
  T* scratch_;
  Arena<T> arena_;
  const Sorted sorted_;
  T* s_;
  char* weights_;
  std::int64_t weights_ld_;
  int n_, i_, self_, class_;
  T row_scale_, row_square_, own_weight_, own_;
  const T* teacher_;
  WeightType type_;
  int whole_, self_vector_;
  const T* copy_ = nullptr;  // of the first held_ columns
  int held_ = 0, rest_ = 0;
  int half_ = 0;
};

// The weight of a row's loss in the result, by what its functor returns: several outputs it weights
// itself.
template <class T>
FASTDML_FN T weight_of(const Block<T>& b, int i, const T*) {
  return b.weight * (b.row_weight ? b.row_weight[i] : T(1));
}
template <class T, int N>
FASTDML_FN T weight_of(const Block<T>&, int, const Values<T, N>*) {
  return T(1);
}

template <class T>
FASTDML_FN T weight_of(const Block<T>& b, int i, const Counted<T>*) {
  return weight_of(b, i, static_cast<const T*>(nullptr));
}

// Values of shared memory for the lists and arrays of one row.
constexpr int kArena = FASTDML_LISTS ? static_cast<int>(arena_size(kShortList, 0)) : 0;

// Whether a functor's arrays are as long as a row.
template <class Loss>
constexpr bool kWholeRows = requires { Loss::whole_rows; };

// Keys of a pair that a loss may have its rows sorted by (sort_keys of rows/row.h). Losses whose arrays are
// as long as a row always have them sorted.
template <class T, class Loss>
constexpr int kSorts = [] {
  if constexpr (requires(const Loss& loss, Pairs<T> p) { loss.sort_keys(p); }) {
    using Keys = decltype(std::declval<const Loss&>().sort_keys(std::declval<const Pairs<T>&>()));
    // Were its type deduced, the host would not see it.
    static_assert(std::is_same_v<Keys, Values<T, 1>> || std::is_same_v<Keys, Values<T, kMostSorts>>,
                  "sort_keys returns Values<T, 1> or Values<T, 2>");
    return static_cast<int>(sizeof(Keys) / sizeof(T));
  } else {
    return 0;
  }
}();
template <class T, class Loss>
Sorts sorts(const Loss& loss) {
  if constexpr (kSorts<T, Loss> > 0)
    return loss.sorts();
  else
    return Sorts::none;
}

// The share of one team in writing the keys of a block's rows.
template <class T, class Loss, class Team>
FASTDML_FN void run_keys(const Block<T>& b, const Loss& loss, Team& team, int first, int step,
                         T* scratch, const SortedRows<T>& to) {
  for (int i = first; i < b.rows; i += step) {
    Row<T, Team> row(b, Target{}, team, i, T(1), scratch, nullptr);
    row.write_keys(loss, SortedRow<T>::of(to, i, b));
    team.sync();  // the next row reuses scratch
  }
}

// A row in order, by the team that takes it. room: sort_room(cols) values.
template <class T, class Loss, class Team>
FASTDML_FN SortedRow<T> sort_row(const Block<T>& b, const Loss& loss, Team& team, int i, T* scratch,
                                 T* shared, T* room) {
  static_assert((kDigits + 2) * kMaxThreads / 2 <= kArena || sizeof(T) == 0,
                "the counters do not fit in shared memory");
  auto* const keys = reinterpret_cast<KeyBits<T>*>(room);
  SortedRow<T> row{};
  row.keys[0] = keys;
  row.kept[0] = reinterpret_cast<std::int32_t*>(keys + 2 * b.cols);
  Row<T, Team>(b, Target{}, team, i, T(1), scratch, nullptr).write_keys(loss, row);
  team.sync();
  row.keys[0] = sort_by_team(team, keys, keys + b.cols, static_cast<int>(b.cols),
                             reinterpret_cast<std::int32_t*>(shared));
  return row;
}

// The values that the lists and arrays of a row hold each, at most.
template <class Loss, class T>
FASTDML_FN std::int64_t list_length(const Block<T>& b, int i) {
  const int c = b.row_class ? b.row_class[i] : -1;
  const std::int64_t members = c < 0 ? 0 : b.class_start[c + 1] - b.class_start[c];
  return kWholeRows<Loss> && b.cols > members ? b.cols : members;
}

// Which rows a launch takes: those with lists of more than `from` values and no more than `upto`, in the
// `memory` of a team, of which it has `values`; or in shared memory.
template <class T>
struct Lengths {
  std::int64_t from = -1, upto = kShortList;
  T* memory = nullptr;
  std::int64_t values = 0;
  std::int64_t room = 0;  // of these, for sorting a row
};

// The share of one team, number `first` of `step`, in a block of rows: stacks first, first + step, ...
// sorted: of the whole block; where lengths has room for it, a team sorts its rows, of one key, itself.
// held: columns of a row that fit into shared memory beside the kArena values.
template <bool kSorted, class Form = AnyForm, class T, class Loss, class Team>
FASTDML_FN void run_rows(const Block<T>& b, const Target& target, const Loss& loss, Team& team,
                         int first, int step, T* scratch, T* shared, const Lengths<T>& lengths,
                         const SortedRows<T>& sorted, int held) {
  using Here = Row<T, Team, kSorted, Form>;
  using Out = decltype(loss(std::declval<Here&>()));
  constexpr int outputs = sizeof(Out) / sizeof(T);
  const int together = rows_together(loss);
  const auto takes = [&](int i) {
    const std::int64_t n = list_length<Loss>(b, i);
    return n > lengths.from && n <= lengths.upto;
  };
  T* arena = lengths.memory ? lengths.memory + first * lengths.values : shared;
  T* const room = arena;
  arena += lengths.room;
  if (lengths.memory) {
    // Most often there is no such row: all threads look at once.
    bool found = false;
    for (std::int64_t i = first * together + std::int64_t{team.thread()} * step * together; i < b.rows;
         i += std::int64_t{team.size()} * step * together)
      found |= takes(static_cast<int>(i));
    if (!team.any(found)) return;
  }
  for (int i = first * together; i < b.rows; i += step * together) {
    if (kArena > 0 && !takes(i)) continue;
    const T weight = weight_of(b, i, static_cast<const Out*>(nullptr));
    typename Here::Sorted order{};
    if constexpr (kSorted) {
      order = SortedRow<T>::of(sorted, i, b);
      if constexpr (!kWholeRows<Loss>)
        if (lengths.room > 0) order = sort_row(b, loss, team, i, scratch, shared, room);
    }
    Here row(b, target, team, i, weight, scratch, arena, order, shared + kArena, held);
    const Out found = loss(row);
    if (team.thread() == 0) {
      T values[outputs];
      std::memcpy(values, &found, sizeof found);
      for (int k = 0; k < outputs; ++k) b.loss[i * outputs + k] = values[k];
      for (int r = 1; r < together && i + r < b.rows; ++r)
        for (int k = 0; k < outputs; ++k) b.loss[(i + r) * outputs + k] = T(0);
    }
    team.sync();  // the next row reuses scratch and arena
  }
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
