// How many cores there are, and who may use them.
//
// A thread that computes holds a token for each core it keeps busy, and there are as many tokens as cores, so
// decoding and the forward pass share the cores without ever fighting over them.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace swsl {

// Cores that this process may use: those its affinity allows, or fewer where a cgroup's CPU quota (rounded
// up) or OMP_NUM_THREADS, by which schedulers allot cores to their jobs, is smaller. At least 1.
int available_cores();

// The number at the head of OMP_NUM_THREADS, which may be a list, one for each level of nested parallelism;
// nothing where `text` is null or, as to OpenMP, no such list.
std::optional<int> omp_num_threads(const char* text);

// The smallest CPU quota, in cores, of the cgroups in `list_of_groups` (as /proc/self/cgroup) and those
// around them; infinite without one. `root` is where the cgroup file systems, version 1 or 2, are mounted.
double cgroup_cpu_quota(const std::string& list_of_groups, const std::string& root);

// Thread-safe. A forward pass waits longest for its cores, as it needs many, so once one waits, no image gets
// a token. Among forward passes, and among images, whoever came first goes first.
class CoreBudget {
 public:
  explicit CoreBudget(int cores) : total_(std::max(cores, 1)), free_(total_) {}
  CoreBudget(const CoreBudget&) = delete;

  // Tokens, until it is destroyed or told to give them back.
  class Hold {
   public:
    Hold() = default;
    Hold(CoreBudget& budget, int tokens) : budget_(&budget), tokens_(tokens) {}
    Hold(Hold&& other) noexcept : budget_(std::exchange(other.budget_, nullptr)), tokens_(other.tokens_) {}
    Hold& operator=(Hold&& other) noexcept {
      std::swap(budget_, other.budget_);
      std::swap(tokens_, other.tokens_);
      return *this;
    }
    ~Hold() {
      if (budget_) budget_->give_back(tokens_);
    }

   private:
    CoreBudget* budget_ = nullptr;
    int tokens_ = 0;
  };

  Hold for_image();
  // `threads`: of the forward pass; more than there are cores take all of them.
  Hold for_forward(int threads);

  int total() const { return total_; }
  int forwards_waiting() const;
  int images_waiting() const;
  int peak() const;  // tokens that were held at one time, at most

 private:
  struct Waiter {
    const int tokens;
    std::condition_variable called = {};
    bool served = false;
  };
  using Queue = std::deque<Waiter*>;

  Hold take(Queue& queue, int tokens);
  void give_back(int tokens);
  void serve();
  void serve(Queue& queue);

  const int total_;
  mutable std::mutex mutex_;
  int free_;
  Queue forwards_, images_;
  int peak_ = 0;
};

}  // namespace swsl
