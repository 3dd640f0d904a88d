// A block of CUDA threads as threads of the CPU, for ThreadSanitizer, which sees what the fibers of
// emulator.h cannot: two threads at the same value with no barrier between them. A barrier orders memory;
// a value from another lane orders nothing, as on the device.
#pragma once
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace emulator {

class Threads {
 public:
  Threads(int count, std::uint64_t) : lanes_(count), block_(count) {}
  int size() const { return static_cast<int>(lanes_.size()); }
  int current() const { return current_; }

  void run(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int t = 0; t < size(); ++t)
      threads.emplace_back([&, t] {
        current_ = t;
        body(t);
      });
    for (std::thread& thread : threads) thread.join();
  }

  void wait_block() { block_.arrive_and_wait(); }
  // In two turns: nobody is more than one exchange ahead of its warp.
  double exchange(double v, int mask) {
    const int me = current_, turn = lanes_[me].turn.load(std::memory_order_relaxed) + 1;
    lanes_[me].value[turn % 2].store(v, std::memory_order_relaxed);
    // Only for these values: release and acquire would order all that the lanes have written.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    lanes_[me].turn.store(turn, std::memory_order_relaxed);
    for (int lane = me / 32 * 32; lane < me / 32 * 32 + 32; ++lane)
      while (lanes_[lane].turn.load(std::memory_order_relaxed) < turn)
        std::this_thread::sleep_for(std::chrono::microseconds(5));
    return lanes_[me ^ mask].value[turn % 2].load(std::memory_order_relaxed);
  }
  bool any(bool m) {
    wait_block();
    any_ = false;
    wait_block();
    if (m) any_ = true;
    wait_block();
    return any_;
  }

 private:
  struct Lane {
    std::atomic<double> value[2];
    std::atomic<int> turn{0};
  };
  std::vector<Lane> lanes_;
  std::barrier<> block_;
  std::atomic<bool> any_{false};
  static inline thread_local int current_ = 0;
};

}  // namespace emulator

#include "emulated_team.h"
