// The row of the CPU: SIMD passes over one row of similarities, which fits in the cache.
#pragma once
#include "bins.h"
#include "block.h"
#include "clusters.h"
#include "lanes.h"
#include "mesh.h"
#include "order.h"
#include "sorted.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// A vector of pairs, as the lambdas of a functor see it.
template <class T>
struct Pairs {
  Vector<T> s;
  Mask<T> positive, negative;
  const Block<T>* block;
  const T* teacher_row;
  std::int64_t j;
  int count;  // lanes that exist

  FASTDML_FN Vector<T> index() const {
    return __builtin_convertvector(iota<T>(), Vector<T>) + static_cast<T>(j);
  }
  FASTDML_FN Vector<T> teacher() const { return load(teacher_row + j, count); }
  FASTDML_FN Vector<T> column(int k) const {
    return load(block->col_values + k * block->cols + j, count);
  }
};

// Bump allocator for the short arrays of one row; the executor sizes it for the longest list.
template <class T>
struct Arena {
  T* base = nullptr;
  std::int64_t used = 0;
  FASTDML_FN T* take(std::int64_t n) {
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

constexpr int kChunk = 32;  // vectors summed before they join the total: keeps rounding small

template <class T>
class Row {
 public:
  using V = Vector<T>;
  using M = Mask<T>;
  static constexpr int W = kWidth<T>;

  FASTDML_FN Row(const Block<T>& block, std::int64_t i, T* arena)
      : s_(block.s + i * block.ld),
        n_(block.cols),
        i_(i),
        self_(own_column(block, i)),
        class_(block.row_class ? block.row_class[i] : 0),
        col_class_(block.col_class),
        block_(block),
        arena_{arena} {}

  FASTDML_FN T scalar(int k) const { return block_.scalars[k]; }
  FASTDML_FN T value(int k) const { return block_.row_values[i_ * block_.row_count + k]; }
  // Weight of output k of N in the result, for functors with several outputs.
  FASTDML_FN T weight(int k, int outputs) const {
    return block_.weight * (block_.row_weight ? block_.row_weight[i_ * outputs + k] : T(1));
  }
  FASTDML_FN void d_scalar(int k, T v) {
    if (block_.d_scalars) block_.d_scalars[i_ * block_.scalar_count + k] = v;
  }
  FASTDML_FN void d_value(int k, T v) {
    if (block_.d_row_values) block_.d_row_values[i_ * block_.row_count + k] = v;
  }
  FASTDML_FN bool wants_weights() const { return block_.gradient; }
  FASTDML_FN std::int64_t candidates() const { return n_ - (self_ >= 0); }
  FASTDML_FN bool has_own() const { return self_ >= 0; }
  FASTDML_FN T own() const { return s_[self_]; }
  FASTDML_FN void add_own(T g) {
    if (block_.gradient) s_[self_] += g;
  }

  template <class F, class... Ops>
  FASTDML_FN auto reduce(F f, Ops... ops) {
    constexpr int N = sizeof...(Ops);
    Values<V, N> total{{broadcast<T>(identity<T>(ops))...}};
    chunks(
        [&](std::int64_t begin, std::int64_t end) __attribute__((always_inline)) {
          Values<V, N> part{{broadcast<T>(identity<T>(ops))...}};
          for (std::int64_t j = begin; j < end; j += W) fold(part, f(pairs(j)), ops...);
          fold(total, part, ops...);
        },
        [&](std::int64_t j, int count, M valid) __attribute__((always_inline)) {
          auto x = f(pairs(j, count));
          int i = 0;
          ((x[i] = valid ? x[i] : broadcast<T>(identity<T>(ops)), ++i), ...);
          fold(total, x, ops...);
        });
    int i = 0;
    Values<T, N> out;
    ((out[i] = across<Ops, T>(ops, total[i]), ++i), ...);
    return out;
  }

  template <class F>
  FASTDML_FN void map(F f) {
    if (block_.gradient) write(s_, f);
  }
  template <class F>
  FASTDML_FN void d_column(int k, F f) {
    if (block_.d_columns) write(block_.d_columns + (k * block_.rows + i_) * n_, f);
  }

  // How values are compared with the thresholds of a list: each with each, or within windows of the sorted
  // values, or on a mesh.
  enum class Form { pairs, sorted, mesh };

  // The positives of a row as thresholds. Values are copied: map() overwrites the row they came from.
  class List {
   public:
    FASTDML_FN int size() const { return n_; }
    FASTDML_FN T operator[](int k) const { return theta_[k]; }

    template <class F>
    FASTDML_FN T sum(F f) const {
      T total = 0;
      for (int k = 0; k < n_; ++k) total += f(k);
      return total;
    }
    template <class F>
    FASTDML_FN void each(F f) const {
      for (int k = 0; k < n_; ++k) f(k);
    }
    template <class F>
    FASTDML_FN auto compare(F f) {
      return compare(*this, f);
    }
    template <class F>
    FASTDML_FN auto compare(List& other, F f) {
      return row_.sums(other, theta_, n_, -1, f, [](V v, std::int64_t, int) {
        return positive_pairs(v);
      });
    }
    template <class F>
    auto compare(F f, const Tail<T>& tail) {
      const auto all = [](std::int64_t) { return true; };
      const Form form = cheapest<F>(theta_, n_, -1, tail, mesh_);
      if (form == Form::pairs) return compare(*this, f);
      if constexpr (Mesh<T>::kServes)
        if (form == Form::mesh) return row_.mesh_sums(*this, mesh_, theta_, n_, all, f, tail);
      sorted_.build(theta_, n_, all, row_.arena_);
      return row_.window_sums(*this, sorted_, f, tail);
    }
    template <class F>
    void add_compare(const T* c, F f, const Tail<T>& tail) {
      if (!mesh_.laid() && !sorted_.built()) return add_compare(*this, c, f);
      if (!row_.block_.gradient) return;
      const auto all = [](std::int64_t) { return true; };
      const auto put = [this](std::int64_t k, T g) { row_.s_[index_[k]] += g; };
      if (sorted_.built()) return row_.window_weights(*this, sorted_, c, f, tail, put);
      if constexpr (Mesh<T>::kServes) row_.mesh_weights(*this, mesh_, theta_, n_, all, c, f, tail, put);
    }
    template <class F>
    FASTDML_FN void add_compare(const T* c, F f) {
      add_compare(*this, c, f);
    }
    template <class F>
    FASTDML_FN void add_compare(List& other, const T* c, F f) {
      if (!row_.block_.gradient) return;
      const auto weigh = other.weigher(c, f);
      for (int m = 0; m < n_; m += W) {
        const int count = n_ - m < W ? n_ - m : W;
        const V x = load(theta_ + m, count);
        const V g = weigh(x, positive_pairs(x));
        for (int i = 0; i < count; ++i) row_.s_[index_[m + i]] += g[i];
      }
    }
    FASTDML_FN void add(const T* v) {
      if (!row_.block_.gradient) return;
      for (int k = 0; k < n_; ++k) row_.s_[index_[k]] += v[k];
    }
    template <class F>
    FASTDML_FN auto shares(int n, F f) {
      return row_.shared_out(n, [&](auto& to) __attribute__((always_inline)) {
        for (int m = 0; m < n_; m += W) {
          const int count = n_ - m < W ? n_ - m : W;
          to.add(f(positive_pairs(load(theta_ + m, count))), count);
        }
      });
    }
    template <class F>
    FASTDML_FN void add_by_bin(int n, const T* by, F f) {
      if (!row_.block_.gradient) return;
      const Bins<T> bins(n);
      for (int m = 0; m < n_; m += W) {
        const int count = n_ - m < W ? n_ - m : W;
        const M bin = bins.moving(f(positive_pairs(load(theta_ + m, count))));
        for (int i = 0; i < count; ++i)
          if (bin[i] < n) row_.s_[index_[m + i]] += by[bin[i]];
      }
    }
    FASTDML_FN void set(const T* v) {
      if (!row_.block_.gradient) return;
      for (int k = 0; k < n_; ++k) row_.s_[index_[k]] = v[k];
    }

   private:
    friend class Row;
    // The cheapest form of a comparison with n values x, x_own apart; lays the mesh if it is that. Sorting
    // saves the pairs outside the windows: a few are looked at to see how many those are. A sigmoid passes
    // over vectors of values that are below all windows in either form.
    template <class F>
    Form cheapest(const T* x, std::int64_t n, std::int64_t own, const Tail<T>& tail, Mesh<T>& mesh) const {
      if (n_ == 0 || n_ < tail.least) return Form::pairs;
      if (tail.least == 0 || !(tail.from < tail.to)) return Form::sorted;
      constexpr int kValues = 64, kThresholds = 4;
      int inside = 0, below = 0;
      for (int i = 0; i < kValues; ++i) {
        int low = 0;
        for (int q = 0; q < kThresholds; ++q) {
          const T t = x[i * n / kValues] - theta_[q * (n_ - 1) / (kThresholds - 1)];
          inside += t >= tail.from && t <= tail.to;
          low += t < tail.from;
        }
        below += low == kThresholds;
      }
      // A pair in a window costs more once sorted, since its weight is added up in memory.
      const T share = static_cast<T>(inside) / (kValues * kThresholds);
      T passed = T(BySigmoid<F>);
      for (int lane = 0; lane < W; ++lane) passed *= static_cast<T>(below) / kValues;
      // Pairs of a value: all, and with sorting.
      const T all = n_ * (T(1) - passed), sorted = n_ * T(1.4) * share + tail.least;
      if (meshes(x, n, own, tail, min(all, sorted), mesh)) return Form::mesh;
      return all > sorted ? Form::sorted : Form::pairs;
    }
    // Whether a mesh costs less than `pairs` comparisons of every value.
    bool meshes(const T* x, std::int64_t n, std::int64_t own, const Tail<T>& tail, T pairs, Mesh<T>& mesh) const {
      if (!Mesh<T>::kServes || tail.smooth == T(0)) return false;
      // What a value or a threshold costs, and a product of the mesh, in comparisons by smooth_step, of which
      // 48 cost as much as sorting a value. (Those are made W at a time, a value's eight nodes are not.)
      constexpr T kPoint = T(16 + 2 * W), kProduct = T(0.35);
      const T budget = pairs * n * T(48) / tail.least - kPoint * (static_cast<T>(n) + T(1.5) * n_);
      if (!(budget > T(0))) return false;
      const Values<T, 3> ends = extent(x, n, own);
      Mesh<T> found;
      if (ends[2] != T(0) || !found.lay(ends[0], ends[1], tail.smooth, max(tail.to, -tail.from))) return false;
      if (kProduct * found.products() > budget) return false;
      mesh = found;
      return true;
    }
    // The least and the largest of all values and thresholds, and 0, or NaN where some of them are not finite.
    FASTDML_FN Values<T, 3> extent(const T* x, std::int64_t n, std::int64_t own) const {
      V low = broadcast(theta_[0]), high = low, odd{};
      const auto take = [&](V v) __attribute__((always_inline)) {
        low = min(low, v), high = max(high, v), odd += v * T(0);
      };
      const auto all = [&](const T* v, std::int64_t count, std::int64_t apart) __attribute__((always_inline)) {
        runs(
            count, apart,
            [&](std::int64_t begin, std::int64_t end) __attribute__((always_inline)) {
              for (std::int64_t j = begin; j < end; j += W) take(load(v + j));
            },
            [&](std::int64_t j, int some, M valid) __attribute__((always_inline)) {
              take(valid ? load(v + j, some) : broadcast(theta_[0]));
            });
      };
      all(x, n, own);
      all(theta_, n_, -1);
      return {{across<Min, T>(Min{}, low), across<Max, T>(Max{}, high), across<Sum, T>(Sum{}, odd)}};
    }
    FASTDML_FN List(Row& row, const std::int32_t* index, int n) : row_(row) {
      theta_ = row.arena_.take(n);
      index_ = row.index_;
      for (int k = 0; k < n; ++k) {
        if (index[k] == row.self_) continue;
        index_[n_] = index[k];
        theta_[n_++] = row.s_[index[k]];
      }
    }
    FASTDML_FN List(Row& row, int n) : row_(row), theta_(row.arena_.take(n)), n_(n) {}

    // Calls each(comparison, begin, end): the comparison is with thresholds begin ... end - 1.
    template <class F, class Each>
    FASTDML_FN void visit(F f, Each each) {
      if constexpr (BySigmoid<F>) {
        clusters_.build(theta_, n_, f.sharpness, row_.arena_);
        clusters_.visit(f, each);
      } else {
        each(Plainly<T, F>{theta_, f}, 0, n_);
      }
    }

    // Gives sum_k c_k f(v - theta_k, p) for a vector of values v. c outlives it.
    template <class F>
    FASTDML_FN auto weigher(const T* c, F f) {
      const T* by = c;
      if constexpr (BySigmoid<F>) {
        clusters_.build(theta_, n_, f.sharpness, row_.arena_);
        T* moved = row_.arena_.take(n_);
        for (int k = 0; k < n_; ++k) moved[k] = c[clusters_.order()[k]];
        by = moved;
      }
      return [this, by, f](V v, const Pairs<T>& p) __attribute__((always_inline)) {
        V g{};
        visit(f, [&](const auto& with, int begin, int end) __attribute__((always_inline)) {
          if (with.nothing(v)) return;
          const V prepared = with.prepare(v);
          for (int k = begin; k < end; ++k) g += by[k] * with.at(prepared, v, k, p);
        });
        return g;
      };
    }

    Row& row_;
    T* theta_;
    std::int32_t* index_ = nullptr;
    int n_ = 0;
    Sorted<T> sorted_;
    Mesh<T> mesh_;
    Clusters<T> clusters_;
  };

  FASTDML_FN List positives() {
    const std::int32_t* start = block_.class_start + class_;
    // A class that no candidate has (class_ < 0) owns no positives.
    if (class_ < 0) return List(*this, nullptr, 0);
    index_ = reinterpret_cast<std::int32_t*>(arena_.take(start[1] - start[0]));
    return List(*this, block_.class_order + start[0], start[1] - start[0]);
  }

  template <class F>
  FASTDML_FN List list(int n, F f) {
    List made(*this, n);
    for (int k = 0; k < n; ++k) made.theta_[k] = f(k);
    return made;
  }

  FASTDML_FN T* array(int n) { return arena_.take(n); }

  template <class F, class At>
  FASTDML_FN List draw(int n, F weight, At at) {
    const std::int64_t length = draw_run(n_), runs = (n_ + length - 1) / length;
    T* const w = arena_.take(runs * length);
    write(w, weight);
    for (std::int64_t j = n_; j < runs * length; ++j) w[j] = T(0);
    double upto[kDrawRuns], total = 0;
    for (std::int64_t r = 0; r < runs; ++r) {
      V part{};
      for (std::int64_t j = 0; j < length; j += W) part += load(w + r * length + j);
      upto[r] = total += across<Sum, T>(Sum{}, part);
    }
    List made(*this, n);
    made.index_ = reinterpret_cast<std::int32_t*>(arena_.take(n));
    for (int k = 0; k < n; ++k) {
      const Values<double, 2> u = at(k);
      std::int64_t r = std::upper_bound(upto, upto + runs, u[0] * total) - upto;
      if (r == runs) r = runs - 1;  // of NaN
      while (r > 0 && upto[r] == upto[r - 1]) --r;
      const T* const run = w + r * length;
      double sum = 0, reached = 0;
      for (std::int64_t j = 0; j < length; ++j) sum += run[j];
      std::int64_t found = 0;
      for (std::int64_t j = 0; j < length && !(reached > u[1] * sum); ++j) {
        if (run[j] > T(0)) found = j;
        reached += run[j];
      }
      made.index_[k] = static_cast<std::int32_t>(r * length + found);
      made.theta_[k] = s_[made.index_[k]];
    }
    return made;
  }
  FASTDML_FN void map_at(const List& list, const T* v) {
    if (!block_.gradient) return;
    std::memset(s_, 0, n_ * sizeof(T));
    for (int k = 0; k < list.n_; ++k) s_[list.index_[k]] += v[k];
  }

  template <class Key>
  List first(int n, Key key) {
    const T* keys = column_of(key);
    auto* index = reinterpret_cast<std::int32_t*>(arena_.take(n_));
    std::int64_t found = 0;
    for (std::int64_t j = 0; j < n_; ++j)
      if (j != self_) index[found++] = static_cast<std::int32_t>(j);
    const std::int64_t count = n < found ? n : found;
    std::partial_sort(index, index + count, index + found, [=](std::int32_t a, std::int32_t b) {
      return keys[a] < keys[b] || (keys[a] == keys[b] && a < b);
    });
    index_ = reinterpret_cast<std::int32_t*>(arena_.take(count));
    return List(*this, index, static_cast<int>(count));
  }

  // What row.order finds; a value per pair.
  class Order {
   public:
    FASTDML_FN T pairs() const { return static_cast<T>(count_.pairs); }
    FASTDML_FN T active() const { return static_cast<T>(count_.active); }
    FASTDML_FN V slope(const Pairs<T>& p) const { return load(slope_ + p.j, p.count); }

   private:
    friend class Row;
    const T* slope_;
    OrderCount count_;
  };

  template <class Key>
  Order order(Key key, T margin) {
    const T* keys = column_of(key);
    T* slope = arena_.take(n_);
    Order found;
    found.slope_ = slope;
    found.count_ = count_order(s_, keys, n_, self_, margin, slope, arena_);
    return found;
  }

  // Members of a group: consecutive columns, or the same column of consecutive rows.
  struct OfColumns {
    int size;
    FASTDML_FN V read(const T* s, std::int64_t j, int k, int count) const {
      return load_strided(s + j * size + k, size, count);
    }
    FASTDML_FN void write(T* s, std::int64_t j, int k, V g, int count) const {
      store_strided(s + j * size + k, size, g, count);
    }
  };
  struct OfRows {
    std::int64_t ld;
    FASTDML_FN V read(const T* s, std::int64_t j, int k, int count) const {
      return load(s + k * ld + j, count);
    }
    FASTDML_FN void write(T* s, std::int64_t j, int k, V g, int count) const {
      store(s + k * ld + j, g, count);
    }
  };

  // Groups of `size` members, pooled into one pair each. The members' derivatives are found with the
  // pooled values, while the members are at hand, and lie as vectors of groups: W of member 0, W of
  // member 1 and so on.
  template <class Pool, class Members>
  class Grouped {
   public:
    FASTDML_FN T scalar(int k) const { return row_.scalar(k); }
    FASTDML_FN T value(int k) const { return row_.value(k); }
    FASTDML_FN void d_value(int k, T v) { row_.d_value(k, v); }
    FASTDML_FN std::int64_t candidates() const { return groups_; }

    template <class F, class... Ops>
    FASTDML_FN auto reduce(F f, Ops... ops) {
      return pooled_.reduce(f, ops...);
    }

    template <class F>
    FASTDML_FN void map(F f) {
      if (!row_.block_.gradient) return;
      for (std::int64_t j = 0; j < groups_; j += W) {
        const int count = groups_ - j < W ? static_cast<int>(groups_ - j) : W;
        const V g = f(pooled_.pairs(j, count));
        const T* slope = slopes_ + j * size_;
        for (int k = 0; k < size_; ++k)
          members_.write(row_.s_, j, k, g * load(slope + k * W), count);
      }
    }

   private:
    friend class Row;
    FASTDML_FN Grouped(Row& row, int size, const Pool& pool, Members members, std::int64_t groups,
                       const std::int32_t* classes)
        : row_(row),
          members_(members),
          size_(size),
          groups_(groups),
          slopes_(row.arena_.take((groups_ + W - 1) / W * W * size)),
          values_(row.arena_.take(groups_)),
          pooled_(row, values_, groups_, classes) {
      const T* s = row.s_;
      for (std::int64_t j = 0; j < groups_; j += W) {
        const int count = groups_ - j < W ? static_cast<int>(groups_ - j) : W;
        T* member = slopes_ + j * size;
        for (int k = 0; k < size; ++k) store(member + k * W, members.read(s, j, k, count));
        const auto found = pool(
            [=](int k) __attribute__((always_inline)) { return load(member + k * W); }, size);
        store(values_ + j, found[0], count);
        if (!row.block_.gradient) continue;
        for (int k = 0; k < size; ++k)
          store(member + k * W, pool.slope(load(member + k * W), k, found));
      }
    }
    Row& row_;
    Members members_;
    int size_;
    std::int64_t groups_;
    T *slopes_, *values_;
    Row pooled_;
  };

  template <class Pool>
  FASTDML_FN auto group(int size, Pool pool) {
    const std::int64_t groups = n_ / size;
    auto* classes = reinterpret_cast<std::int32_t*>(arena_.take(groups));
    for (std::int64_t j = 0; j < groups; ++j) classes[j] = col_class_[j * size];
    return Grouped<Pool, OfColumns>(*this, size, pool, {size}, groups, classes);
  }

  template <class Pool>
  FASTDML_FN auto stack(int size, Pool pool) {
    const std::int64_t left = block_.rows - i_;  // a block that ends within a stack is no one's memory
    return Grouped<Pool, OfRows>(*this, size < left ? size : static_cast<int>(left), pool, {block_.ld}, n_,
                                 col_class_);
  }

  template <class F>
  FASTDML_FN auto compare(List& list, F f) {
    return sums(list, s_, n_, self_, f, [this](V v, std::int64_t j, int count) {
      return with_class(v, j, count);
    });
  }

  template <class F>
  FASTDML_FN void map_compare(List& list, const T* c, F f) {
    const auto weigh = list.weigher(c, f);
    map([&](auto p) __attribute__((always_inline)) { return weigh(p.s, p); });
  }

  template <class F>
  FASTDML_FN auto shares(int n, F f) {
    return shared_out(n, [&](auto& to) __attribute__((always_inline)) {
      chunks(
          [&](std::int64_t begin, std::int64_t end) __attribute__((always_inline)) {
            for (std::int64_t j = begin; j < end; j += W) to.add(f(pairs(j)));
          },
          [&](std::int64_t j, int count, M valid) __attribute__((always_inline)) {
            to.add(valid ? f(pairs(j, count)) : broadcast(lowest<T>()), count);
          });
    });
  }

  template <class F>
  FASTDML_FN void map_by_bin(int n, const T* by, F f) {
    T* const table = arena_.take(n + 1);
    std::memcpy(table, by, n * sizeof(T));
    table[n] = T(0);  // of pairs in no bin
    const Bins<T> bins(n);
    map([&](auto p) __attribute__((always_inline)) {
      const M bin = bins.moving(f(p));
      V g;
      for (int i = 0; i < W; ++i) g[i] = table[bin[i]];
      return g;
    });
  }

  template <class F>
  auto compare(List& list, F f, const Tail<T>& tail) {
    const Form form = list.template cheapest<F>(s_, n_, self_, tail, mesh_);
    if (form == Form::pairs) return compare(list, f);
    if constexpr (Mesh<T>::kServes)
      if (form == Form::mesh) return mesh_sums(list, mesh_, s_, n_, counted(tail), f, tail);
    sorted_.build(s_, n_, counted(tail), arena_);
    return window_sums(list, sorted_, f, tail);
  }

  template <class F>
  void map_compare(List& list, const T* c, F f, const Tail<T>& tail) {
    if (!mesh_.laid() && !sorted_.built()) return map_compare(list, c, f);
    if (!block_.gradient) return;
    const auto put = [this](std::int64_t j, T g) { s_[j] = g; };
    if (sorted_.built()) {
      std::memset(s_, 0, n_ * sizeof(T));
      return window_weights(list, sorted_, c, f, tail, put);
    }
    if constexpr (Mesh<T>::kServes) mesh_weights(list, mesh_, s_, n_, counted(tail), c, f, tail, put);
  }

 private:
  // Sums of the shares of what add(shares) adds.
  template <class Add>
  FASTDML_FN auto shared_out(int n, Add add) {
    auto* out = reinterpret_cast<Values<T, 1>*>(arena_.take(n + 1));
    Shares<T> to(Bins<T>(n), out[0].v, arena_.take(Shares<T>::room(n)));
    add(to);
    to.flush();
    return Sums<T, 1>{out};
  }

  // A row over other values, with classes of its own: the groups of another row.
  FASTDML_FN Row(const Row& of, T* s, std::int64_t n, const std::int32_t* col_class)
      : s_(s), n_(n), i_(of.i_), self_(-1), class_(of.class_), col_class_(col_class), block_(of.block_) {}

  // key(p) of all pairs, in memory.
  template <class Key>
  T* column_of(Key key) {
    T* out = arena_.take(n_);
    for (std::int64_t j = 0; j < n_; j += W) {
      const int count = n_ - j < W ? static_cast<int>(n_ - j) : W;
      store(out + j, key(pairs(j, count)), count);
    }
    return out;
  }

  FASTDML_FN Pairs<T> pairs(std::int64_t j) const { return with_class(load(s_ + j), j, W); }
  FASTDML_FN Pairs<T> pairs(std::int64_t j, int count) const {
    return with_class(load(s_ + j, count), j, count);
  }
  FASTDML_FN Pairs<T> with_class(V s, std::int64_t j, int count) const {
    typedef std::int32_t C __attribute__((vector_size(W * 4)));
    C c{};
    if (col_class_) std::memcpy(&c, col_class_ + j, count * 4);
    const M same = __builtin_convertvector(c == class_, M);
    return {s, same, ~same, &block_, block_.teacher + i_ * block_.teacher_ld, j, count};
  }

  // Sums of f(x - theta_k) over the sorted values x: f itself inside the window of a group of thresholds,
  // and its straight parts outside from the number and the sum of the values there.
  template <class F>
  auto window_sums(List& list, const Sorted<T>& x, F f, const Tail<T>& tail) {
    constexpr int N = sizeof(decltype(f(V{}, Pairs<T>{}))) / sizeof(V);
    auto* out = reinterpret_cast<Values<T, N>*>(arena_.take(N * list.n_));
    list.visit(f, [&](const auto& with, int begin, int end) {
      windows(with, begin, end, x, tail, [&]<int G>(int k, std::int64_t low, std::int64_t high) {
        sum_group<G, N>(
            with, k, x.values() + low, high - low, -1,
            [&](V v, std::int64_t, int) { return pairs_of(v, tail); }, out);
        const double under = static_cast<double>(low), over = static_cast<double>(x.size() - high);
        for (int g = k; g < k + G; ++g) {
          const double low_sum = x.total() - x.sum_from(low) - under * with.theta[g];
          const double high_sum = x.sum_from(high) - over * with.theta[g];
          Values<T, N>& sum = out[with.index(g)];
          sum[0] += static_cast<T>(tail.low_height * under + tail.low_rise * low_sum +
                                   tail.high_height * over + tail.high_rise * high_sum);
          if constexpr (N > 1)
            sum[1] += static_cast<T>(tail.low_rise * under + tail.high_rise * over);
        }
      });
    });
    return Sums<T, N>{out};
  }

  // Calls put(index, sum_k c_k f(x - theta_k)) for every sorted value x; f returns the slope. The sums
  // that window_sums needs are lost.
  template <class F, class Put>
  void window_weights(List& list, Sorted<T>& x, const T* c, F f, const Tail<T>& tail, Put put) {
    T* weight = x.weights();
    const std::int64_t n = x.size();
    std::memset(weight, 0, n * sizeof(T));
    double* edge = x.scratch();  // changes of the straight parts' sum
    double straight = 0;
    list.visit(f, [&](const auto& with, int begin, int end) {
      windows(with, begin, end, x, tail, [&]<int G>(int k, std::int64_t low, std::int64_t high) {
        T by[G];
        for (int g = 0; g < G; ++g) {
          by[g] = c[with.index(k + g)];
          straight += by[g] * tail.low_rise;
          edge[low] -= by[g] * tail.low_rise;
          edge[high] += by[g] * tail.high_rise;
        }
        for (std::int64_t i = low; i < high; i += W) {
          const int count = high - i < W ? static_cast<int>(high - i) : W;
          const V v = load(x.values() + i, count), prepared = with.prepare(v);
          const Pairs<T> p = pairs_of(v, tail);
          V total = load(weight + i, count);
          for (int g = 0; g < G; ++g) total += by[g] * with.at(prepared, v, k + g, p);
          store(weight + i, total, count);
        }
      });
    });
    for (std::int64_t i = 0; i < n; ++i) {
      straight += edge[i];
      put(x.index(i), weight[i] + static_cast<T>(straight));
    }
  }

  // Whether a comparison with this tail counts column j.
  FASTDML_FN auto counted(const Tail<T>& tail) const {
    return [this, negatives = tail.negatives](std::int64_t j) {
      return j != self_ && !(negatives && col_class_[j] == class_);
    };
  }

  FASTDML_FN T* mesh_room() {
    if (!mesh_room_) mesh_room_ = arena_.take(kMeshRoom);
    return mesh_room_;
  }

  // Sums of f(x_j - theta_k) over the values that keep(j) names.
  template <class F, class Keep>
  auto mesh_sums(List& list, const Mesh<T>& mesh, const T* x, std::int64_t n, Keep keep, F f,
                 const Tail<T>& tail) {
    using Found = decltype(f(V{}, Pairs<T>{}));
    constexpr int N = sizeof(Found) / sizeof(V);
    auto* out = reinterpret_cast<Values<T, N>*>(arena_.take(N * list.n_));
    Straight<T> straight[N] = {{tail.low_height, tail.low_rise, tail.high_height, tail.high_rise}};
    if constexpr (N > 1) straight[1] = {tail.low_rise, T(0), tail.high_rise, T(0)};
    mesh.sums(
        mesh_room(), x, n, keep, [](std::int64_t) { return T(1); }, list.theta_, list.n_,
        [](std::int64_t) { return true; }, [&](V t) { return f(t, pairs_of(t, tail)); }, T(1), straight,
        [out](std::int64_t k, const Values<T, N>& sum) { out[k] = sum; });
    return Sums<T, N>{out};
  }

  // Calls put(j, sum_k c_k f(x_j - theta_k)) for every value, of 0 for those that keep(j) does not name; f
  // returns the slope.
  template <class F, class Keep, class Put>
  void mesh_weights(List& list, const Mesh<T>& mesh, const T* x, std::int64_t n, Keep keep, const T* c, F f,
                    const Tail<T>& tail, Put put) {
    // Mass is that of the thresholds here: what lies above a value is compared from below.
    const Straight<T> straight[1] = {{tail.high_rise, T(0), tail.low_rise, T(0)}};
    mesh.sums(
        mesh_room(), list.theta_, list.n_, [](std::int64_t) { return true; }, [c](std::int64_t k) { return c[k]; },
        x, n, keep, [&](V t) { return values(f(t, pairs_of(t, tail))); }, T(-1), straight,
        [put](std::int64_t j, const Values<T, 1>& sum) { put(j, sum[0]); });
  }

  // Calls each.operator()<G>(k, low, high) for groups of thresholds k ... k + G - 1: the sorted values
  // low ... high - 1 are those in a window of theirs.
  template <class With, class Each>
  static void windows(const With& with, int begin, int end, const Sorted<T>& x, const Tail<T>& tail,
                      Each each) {
    constexpr int kMost = With::kAscending ? With::kGroup : 1;
    in_groups<kMost>(begin, end, [&]<int G>(int k) {
      each.template operator()<G>(k, x.below(with.theta[k] + tail.from),
                                  x.upto(with.theta[k + G - 1] + tail.to));
    });
  }

  FASTDML_FN static Pairs<T> pairs_of(V s, const Tail<T>& tail) {
    const M all = M{} == M{};
    return {s, tail.negatives ? M{} : all, tail.negatives ? all : M{}, nullptr, nullptr, 0, 0};
  }

  FASTDML_FN static Pairs<T> positive_pairs(V s) {
    return {s, M{} == M{}, M{}, nullptr, nullptr, 0, 0};
  }

  template <int N, class... Ops>
  FASTDML_FN static void fold(Values<V, N>& total, const Values<V, N>& x, Ops... ops) {
    int i = 0;
    ((total[i] = combine_lanes(ops, total[i], x[i]), ++i), ...);
  }
  FASTDML_FN static V combine_lanes(Sum, V a, V b) { return a + b; }
  FASTDML_FN static V combine_lanes(Min, V a, V b) { return min(a, b); }
  FASTDML_FN static V combine_lanes(Max, V a, V b) { return max(a, b); }

  template <class Full, class Partial>
  FASTDML_FN void chunks(Full full, Partial partial) const {
    runs(n_, self_, full, partial);
  }

  // to[j] = f(pair j), which may read to[j]; 0 for the row's own.
  template <class F>
  FASTDML_FN void write(T* to, F f) const {
    chunks(
        [&](std::int64_t begin, std::int64_t end) __attribute__((always_inline)) {
          for (std::int64_t j = begin; j < end; j += W) store(to + j, f(pairs(j)));
        },
        [&](std::int64_t j, int count, M valid) __attribute__((always_inline)) {
          V g = f(pairs(j, count));
          store(to + j, valid ? g : V{}, count);
        });
  }

  // Calls full(begin, end) on runs of whole vectors of at most kChunk, and partial(j, count, valid)
  // on the vector that holds the row's own pair and on the rest at the end.
  template <class Full, class Partial>
  FASTDML_FN static void runs(std::int64_t n, std::int64_t self, Full full, Partial partial) {
    using I = typename Lane<T>::I;
    const std::int64_t whole = n / W * W;
    std::int64_t begin = 0, stop = self >= 0 && self < n ? self / W * W : whole;
    while (true) {
      for (; begin < stop; begin += kChunk * W)
        full(begin, begin + kChunk * W < stop ? begin + kChunk * W : stop);
      begin = stop;
      if (begin >= n) break;
      const int count = n - begin < W ? static_cast<int>(n - begin) : W;
      const M lane = iota<T>();
      partial(begin, count, (lane < static_cast<I>(count)) & (lane != static_cast<I>(self - begin)));
      begin += count;
      stop = whole > begin ? whole : begin;
    }
  }

  // Sums of f(x_j - theta_k) over n values x, several thresholds at a time so that each load serves as many
  // evaluations. `own` is the value to leave out, or -1; `at` turns a vector of x into pairs.
  template <class F, class At>
  FASTDML_FN auto sums(List& list, const T* x, std::int64_t n, std::int64_t own, F f, At at) {
    constexpr int N = sizeof(decltype(f(V{}, Pairs<T>{}))) / sizeof(V);
    auto* out = reinterpret_cast<Values<T, N>*>(arena_.take(N * list.n_));
    list.visit(f, [&](const auto& with, int begin, int end) {
      in_groups<std::decay_t<decltype(with)>::kGroup>(
          begin, end, [&]<int G>(int k) { sum_group<G, N>(with, k, x, n, own, at, out); });
    });
    return Sums<T, N>{out};
  }

  template <int G, int N, class With, class At>
  FASTDML_FN static void sum_group(const With& with, int k, const T* x, std::int64_t n, std::int64_t own,
                                   At at, Values<T, N>* out) {
    V total[G][N] = {};
    runs(
        n, own,
        [&](std::int64_t begin, std::int64_t end) __attribute__((always_inline)) {
          V part[G][N] = {};
          for (std::int64_t j = begin; j < end; j += W) {
            const V v = load(x + j);
            if (with.nothing(v)) continue;
            const V prepared = with.prepare(v);
            const Pairs<T> p = at(v, j, W);
            for (int g = 0; g < G; ++g) {
              auto y = with.at(prepared, v, k + g, p);
              for (int i = 0; i < N; ++i) part[g][i] += y[i];
            }
          }
          for (int g = 0; g < G; ++g)
            for (int i = 0; i < N; ++i) total[g][i] += part[g][i];
        },
        [&](std::int64_t j, int count, M valid) __attribute__((always_inline)) {
          const V v = load(x + j, count), prepared = with.prepare(v);
          const Pairs<T> p = at(v, j, count);
          for (int g = 0; g < G; ++g) {
            auto y = with.at(prepared, v, k + g, p);
            for (int i = 0; i < N; ++i) total[g][i] += valid ? y[i] : V{};
          }
        });
    for (int g = 0; g < G; ++g)
      for (int i = 0; i < N; ++i) out[with.index(k + g)][i] = across<Sum, T>(Sum{}, total[g][i]);
  }

  T* s_;
  std::int64_t n_;
  std::int64_t i_;
  std::int64_t self_;
  std::int32_t class_;
  const std::int32_t* col_class_;
  const Block<T>& block_;
  Arena<T> arena_;
  Sorted<T> sorted_;
  Mesh<T> mesh_;
  T* mesh_room_ = nullptr;
  std::int32_t* index_ = nullptr;
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
