#include "threads/cores.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include <sched.h>

#include "check.h"
#include "test_data.h"

using swsl::CoreBudget;

namespace {

// How many threads are busy, and how many were at most.
class Busy {
 public:
  void work(int threads) {
    const int now = now_ += threads;
    for (int peak = peak_; peak < now && !peak_.compare_exchange_weak(peak, now);) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    now_ -= threads;
  }
  int peak() const { return peak_; }

 private:
  std::atomic<int> now_ = 0, peak_ = 0;
};

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

}  // namespace

TEST(no_more_threads_are_busy_than_there_are_cores) {
  for (const int forward_threads : {0, 1, 3, 9}) {
    CoreBudget budget(3);
    Busy busy;
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i)
      threads.emplace_back([&] {
        for (int round = 0; round < 200; ++round) {
          const auto core = budget.for_image();
          busy.work(1);
        }
      });
    for (int i = 0; i < 2; ++i)
      threads.emplace_back([&] {
        for (int round = 0; round < 100; ++round) {
          const auto cores = budget.for_forward(forward_threads);
          busy.work(std::min(forward_threads, 3));
        }
      });
    for (auto& thread : threads) thread.join();
    CHECK(busy.peak() <= 3);
    CHECK(budget.peak() <= 3 && budget.peak() >= busy.peak());
    const auto all = budget.for_forward(3);  // every token came back
    CHECK_EQ(budget.peak(), 3);
  }
}

TEST(images_wait_behind_a_forward_pass_that_waits) {
  CoreBudget budget(2);
  auto first = std::make_unique<CoreBudget::Hold>(budget.for_image());
  std::atomic<int> order = 0;
  int forward_was = 0, image_was = 0;
  std::thread forward([&] {
    const auto cores = budget.for_forward(2);
    forward_was = ++order;
  });
  while (budget.forwards_waiting() == 0) std::this_thread::yield();
  std::thread image([&] {
    const auto core = budget.for_image();  // one core is free, but not for this
    image_was = ++order;
  });
  first.reset();
  forward.join();
  image.join();
  CHECK_EQ(forward_was, 1);
  CHECK_EQ(image_was, 2);
}

TEST(whoever_came_first_gets_cores_first) {
  for (const bool forwards : {true, false}) {
    CoreBudget budget(1);
    auto first = std::make_unique<CoreBudget::Hold>(budget.for_image());
    std::vector<int> order;  // guarded by the only core
    std::vector<std::thread> threads;
    for (int i = 0; i < 12; ++i) {
      threads.emplace_back([&, i] {
        const auto core = forwards ? budget.for_forward(1) : budget.for_image();
        order.push_back(i);
      });
      while ((forwards ? budget.forwards_waiting() : budget.images_waiting()) != i + 1)
        std::this_thread::yield();
    }
    first.reset();
    for (auto& thread : threads) thread.join();
    for (int i = 0; i < 12; ++i) CHECK_EQ(order[i], i);
  }
}

TEST(the_smallest_quota_of_the_groups_around_counts) {
  const std::filesystem::path root = data("cgroups");
  std::filesystem::remove_all(root);
  const auto quota = [&](const std::string& groups) {
    write(root / "groups", groups);
    return swsl::cgroup_cpu_quota(root / "groups", root);
  };
  write(root / "cpu.max", "max 100000\n");
  write(root / "a" / "cpu.max", "150000 100000\n");
  write(root / "a" / "b" / "cpu.max", "400000 100000\n");
  write(root / "cpu" / "d" / "cpu.cfs_quota_us", "50000\n");
  write(root / "cpu" / "d" / "cpu.cfs_period_us", "100000\n");
  write(root / "cpu" / "cpu.cfs_quota_us", "-1\n");
  write(root / "cpu" / "cpu.cfs_period_us", "100000\n");
  CHECK_EQ(quota("0::/a/b\n"), 1.5);
  CHECK_EQ(quota("0::/\n"), HUGE_VAL);
  CHECK_EQ(quota("5:memory:/a\n4:cpu,cpuacct:/d/not-mounted-here\n"), 0.5);
  CHECK_EQ(quota("4:cpu:/\n"), HUGE_VAL);
  CHECK_EQ(quota("4:cpuset:/d\n"), HUGE_VAL);
  CHECK_EQ(swsl::cgroup_cpu_quota(root / "nothing", root), HUGE_VAL);
}

#ifdef __linux__
TEST(affinity_counts) {
  cpu_set_t before, one;
  CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  CHECK(swsl::available_cores() >= 1 && swsl::available_cores() <= CPU_COUNT(&before));
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &before)) {
      CPU_SET(cpu, &one);
      break;
    }
  CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  CHECK_EQ(swsl::available_cores(), 1);
  sched_setaffinity(0, sizeof before, &before);
}
#endif

TEST(what_a_scheduler_allots_counts) {
  for (const char* text : {"3", " 3 ", "3,2", "3, 2,1"}) CHECK_EQ(swsl::omp_num_threads(text).value_or(0), 3);
  for (const char* text : {"", "0", "-1", "three", "3;2", "3x", "3,0", "3,,2", "99999999999"})
    CHECK(!swsl::omp_num_threads(text));
  CHECK(!swsl::omp_num_threads(nullptr));
  const char* before = std::getenv("OMP_NUM_THREADS");
  const std::string kept = before != nullptr ? before : "";
  setenv("OMP_NUM_THREADS", "1", 1);
  CHECK_EQ(swsl::available_cores(), 1);
  if (before != nullptr)
    setenv("OMP_NUM_THREADS", kept.c_str(), 1);
  else
    unsetenv("OMP_NUM_THREADS");
}
