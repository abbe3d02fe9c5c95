#include "threads/cores.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace swsl {
namespace {

int cores_of_affinity() {
#ifdef __linux__
  for (int size = 1024; size <= 1 << 20; size *= 4) {  // the kernel refuses a set too small for the machine
    std::vector<unsigned long> bits(size / (8 * sizeof(unsigned long)));
    auto* set = reinterpret_cast<cpu_set_t*>(bits.data());
    if (sched_getaffinity(0, size / 8, set) == 0) return CPU_COUNT_S(size / 8, set);
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// Of one cgroup, in cores.
std::optional<double> quota_of(const std::string& folder) {
  std::string quota;
  double period = 0;
  if (std::ifstream v2(folder + "/cpu.max"); v2 >> quota >> period) {
    if (quota == "max" || period <= 0) return {};
    return std::atof(quota.c_str()) / period;
  }
  double microseconds = 0;
  if (std::ifstream(folder + "/cpu.cfs_quota_us") >> microseconds &&
      std::ifstream(folder + "/cpu.cfs_period_us") >> period && microseconds > 0 && period > 0)
    return microseconds / period;
  return {};
}

// A quota set further up holds too, so every folder from the process's own to the root is looked at.
double smallest_quota(const std::string& root, std::string group) {
  double smallest = HUGE_VAL;
  while (true) {
    if (const auto quota = quota_of(root + group)) smallest = std::min(smallest, *quota);
    const auto slash = group.find_last_of('/');
    if (slash == std::string::npos) return smallest;
    group.resize(slash);
  }
}

}  // namespace

double cgroup_cpu_quota(const std::string& list_of_groups, const std::string& root) {
  double smallest = HUGE_VAL;
  std::ifstream groups(list_of_groups);
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    const std::string path = line.substr(second + 1);
    if (controllers.str().empty()) smallest = std::min(smallest, smallest_quota(root, path));
    for (std::string name; std::getline(controllers, name, ',');)
      if (name == "cpu")
        for (const std::string mount : {"/cpu", "/cpu,cpuacct"})
          smallest = std::min(smallest, smallest_quota(root + mount, path));
  }
  return smallest;
}

std::optional<int> omp_num_threads(const char* text) {
  if (text == nullptr) return {};
  std::istringstream list(text);
  std::optional<int> first;
  for (int number; list >> number;) {
    if (number < 1) return {};
    if (!first) first = number;
    char comma;
    if (!(list >> comma)) return first;
    if (comma != ',') return {};
  }
  return {};
}

int available_cores() {
  const double quota = std::ceil(cgroup_cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup"));
  int cores = cores_of_affinity();
  if (quota < cores) cores = static_cast<int>(quota);
  cores = std::min(cores, omp_num_threads(std::getenv("OMP_NUM_THREADS")).value_or(cores));
  return std::max(1, cores);
}

CoreBudget::Hold CoreBudget::for_image() { return take(images_, 1); }

CoreBudget::Hold CoreBudget::for_forward(int threads) {
  return take(forwards_, std::clamp(threads, 0, total_));
}

CoreBudget::Hold CoreBudget::take(Queue& queue, int tokens) {
  std::unique_lock lock(mutex_);
  Waiter me{tokens};
  queue.push_back(&me);
  serve();
  me.called.wait(lock, [&] { return me.served; });
  return {*this, tokens};
}

void CoreBudget::give_back(int tokens) {
  const std::lock_guard lock(mutex_);
  free_ += tokens;
  serve();
}

void CoreBudget::serve() {
  serve(forwards_);
  if (forwards_.empty()) serve(images_);
}

void CoreBudget::serve(Queue& queue) {
  while (!queue.empty() && queue.front()->tokens <= free_) {
    Waiter& next = *queue.front();
    queue.pop_front();
    free_ -= next.tokens;
    peak_ = std::max(peak_, total_ - free_);
    next.served = true;
    next.called.notify_one();  // with the mutex held: once it is free, `next` may be gone
  }
}

int CoreBudget::forwards_waiting() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(forwards_.size());
}

int CoreBudget::images_waiting() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(images_.size());
}

int CoreBudget::peak() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

}  // namespace swsl
