// Lines on stderr that say how far a run has come: on a terminal one, redrawn at most ten times a second,
// else one every ten seconds. The same, at the same times, as of `swsl`: swsl/system/progress.py.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

// 1234567 as 1,234,567; what is behind a point stays.
inline std::string with_commas(std::string number) {
  for (auto at = static_cast<std::ptrdiff_t>(std::min(number.find('.'), number.size())) - 3; at > 0; at -= 3)
    number.insert(static_cast<std::size_t>(at), 1, ',');
  return number;
}

class Progress {
 public:
  using Time = std::chrono::steady_clock::time_point;

  static bool on_terminal() { return isatty(STDERR_FILENO) == 1; }

  // `total`: images that are to come, where that is known. A handful of them go without a line.
  Progress(bool enabled, std::optional<std::int64_t> total, std::ostream& out = std::cerr,
           bool terminal = on_terminal(), std::function<Time()> now = std::chrono::steady_clock::now)
      : enabled_(enabled && (!total || *total > 5)),
        total_(total),
        out_(out),
        terminal_(terminal),
        now_(std::move(now)) {}

  ~Progress() {
    if (!enabled_ || !(terminal_ || begun_)) return;
    draw();
    if (terminal_) out_ << std::endl;
  }

  void advance(bool failed) {
    ++done_;
    failed_ += failed;
    tick();
  }

  // Time has passed, perhaps enough of it.
  void tick() {
    if (enabled_ &&
        now_() - drawn_ >= (terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10)))
      draw();
  }

  // A line of its own, above the progress line.
  void message(const std::string& text) const {
    out_ << (enabled_ && terminal_ ? "\r\033[K" : "") << text << std::endl;
  }

 private:
  void draw() {
    drawn_ = now_();
    begun_ = true;
    const double seconds = std::chrono::duration<double>(drawn_ - start_).count();
    const double rate = static_cast<double>(done_) / std::max(seconds, 1e-9);
    char text[64];
    std::string line = with_commas(std::to_string(done_));
    if (total_) line += " of " + with_commas(std::to_string(*total_));
    std::snprintf(text, sizeof text, "%.1f", rate);
    line += " images, " + with_commas(text) + " images/s";
    if (failed_) line += ", " + with_commas(std::to_string(failed_)) + " failed";
    if (total_ && done_) {
      const auto left = std::llround(static_cast<double>(std::max<std::int64_t>(*total_ - done_, 0)) / rate);
      if (left >= 3600)
        std::snprintf(text, sizeof text, ", %lld:%02lld:%02lld left", left / 3600, left / 60 % 60, left % 60);
      else
        std::snprintf(text, sizeof text, ", %lld:%02lld left", left / 60, left % 60);
      line += text;
    }
    if (terminal_)
      out_ << "\r\033[K" << line << std::flush;
    else
      out_ << "swsl-classify: " << line << std::endl;
  }

  const bool enabled_;
  const std::optional<std::int64_t> total_;
  std::ostream& out_;
  const bool terminal_;
  const std::function<Time()> now_;
  const Time start_ = now_();
  Time drawn_ = start_;
  bool begun_ = false;
  std::int64_t done_ = 0, failed_ = 0;
};
