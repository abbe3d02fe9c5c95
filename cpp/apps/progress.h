// One line on stderr that says how far a run has come, redrawn at most ten times a second, and only on a
// terminal.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <optional>
#include <string>

class Progress {
 public:
  static bool visible() { return isatty(STDERR_FILENO) == 1; }

  // `total`: images that are to come, where that is known.
  Progress(bool enabled, std::optional<std::int64_t> total) : enabled_(enabled && visible()), total_(total) {}

  ~Progress() {
    if (!enabled_) return;
    draw();
    std::cerr << '\n';
  }

  void advance(bool failed) {
    ++done_;
    failed_ += failed;
    if (enabled_ && Clock::now() - drawn_ >= std::chrono::milliseconds(100)) draw();
  }

  // A line of its own, above the progress line.
  void message(const std::string& text) const { std::cerr << (enabled_ ? "\r\033[K" : "") << text << '\n'; }

 private:
  using Clock = std::chrono::steady_clock;

  void draw() {
    drawn_ = Clock::now();
    const double seconds = std::chrono::duration<double>(drawn_ - start_).count();
    const double rate = static_cast<double>(done_) / std::max(seconds, 1e-9);
    std::string line = std::to_string(done_);
    char text[64];
    if (total_) line += " of " + std::to_string(*total_);
    std::snprintf(text, sizeof text, " images, %.1f images/s", rate);
    line += text;
    if (failed_) line += ", " + std::to_string(failed_) + " failed";
    if (total_ && rate > 0) {
      const auto left = std::llround(static_cast<double>(std::max<std::int64_t>(*total_ - done_, 0)) / rate);
      std::snprintf(text, sizeof text, ", %lld:%02lld left", left / 60, left % 60);
      line += text;
    }
    std::cerr << "\r\033[K" << line << std::flush;
  }

  const bool enabled_;
  const std::optional<std::int64_t> total_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_ = start_;
  std::int64_t done_ = 0, failed_ = 0;
};
