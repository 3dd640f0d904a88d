// A block of CUDA threads on the CPU: every thread is a fiber, run in an order that a seed shuffles
// anew after every barrier. A missing barrier, a race or a barrier that not all threads reach shows
// as a wrong result, a result that depends on the seed, or an exception.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace emulator {

class Threads {
 public:
  Threads(int count, std::uint64_t seed) : fibers_(count), order_(count), random_(seed) {
    for (int t = 0; t < count; ++t) order_[t] = t;
  }
  int size() const { return static_cast<int>(fibers_.size()); }
  int current() const { return current_; }

  // Runs body(thread) on all threads until all have returned.
  void run(const std::function<void(int)>& body) {
    body_ = &body;
    for (int t = 0; t < size(); ++t) {
      Fiber& f = fibers_[t];
      if (!f.stack) f.stack.reset(new char[kStack]);
      f.state = State::ready;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = nullptr;  // enter never returns
      const auto self = reinterpret_cast<std::uintptr_t>(this);
      makecontext(&f.context, reinterpret_cast<void (*)()>(&Threads::enter), 2,
                  static_cast<unsigned>(self), static_cast<unsigned>(self >> 32));
      f.entered = false;
    }
    while (step()) {
    }
  }

  void wait_block() { wait(State::at_block); }
  void wait_warp() { wait(State::at_warp); }
  // Values between the lanes of a warp: in two turns, so that one wait serves an exchange.
  double exchange(double v, int mask) {
    const int t = current_, turn = fibers_[t].turn ^= 1;
    exchange_[turn][t] = v;
    wait_warp();
    return exchange_[turn][t ^ mask];
  }
  bool any(bool m) {
    wait_block();
    any_ = false;
    wait_block();
    any_ |= m;
    wait_block();
    return any_;
  }

 private:
  static constexpr std::size_t kStack = 256 << 10;
  enum class State { ready, at_warp, at_block, done };
  struct Fiber {
    ucontext_t context;  // only to get onto the stack: it saves signal masks, a system call a switch
    jmp_buf jump;
    bool entered = false;
    int turn = 0;
    std::unique_ptr<char[]> stack;
    State state = State::ready;
  };

  static void enter(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<Threads*>(static_cast<std::uintptr_t>(high) << 32 | low);
    (*self->body_)(self->current_);
    self->fibers_[self->current_].state = State::done;
    _longjmp(self->scheduler_jump_, 1);
  }
  void wait(State state) {
    Fiber& f = fibers_[current_];
    f.state = state;
    if (!_setjmp(f.jump)) _longjmp(scheduler_jump_, 1);
  }
  void resume(int t) {
    current_ = t;
    Fiber& f = fibers_[t];
    if (_setjmp(scheduler_jump_)) return;
    if (f.entered) _longjmp(f.jump, 1);
    f.entered = true;
    setcontext(&f.context);
  }
  // Lets every thread that can run do so once; false when all have returned.
  bool step() {
    std::shuffle(order_.begin(), order_.end(), random_);
    bool ran = false;
    for (int t : order_)
      if (fibers_[t].state == State::ready) {
        resume(t);
        ran = true;
      }
    for (int w = 0; w < size(); w += 32) release(State::at_warp, w, w + 32, &ran);
    release(State::at_block, 0, size(), &ran);
    const bool done = std::all_of(fibers_.begin(), fibers_.end(),
                                  [](const Fiber& f) { return f.state == State::done; });
    if (!ran && !done) throw std::runtime_error("threads wait at different barriers");
    return !done;
  }
  void release(State state, int begin, int end, bool* any) {
    for (int t = begin; t < end; ++t)
      if (fibers_[t].state != state) return;
    for (int t = begin; t < end; ++t) fibers_[t].state = State::ready;
    *any = true;
  }

  std::vector<Fiber> fibers_;
  std::vector<int> order_;
  std::mt19937_64 random_;
  jmp_buf scheduler_jump_;
  double exchange_[2][1024];
  bool any_ = false;
  const std::function<void(int)>* body_ = nullptr;
  int current_ = 0;
};

}  // namespace emulator

#include "emulated_team.h"
