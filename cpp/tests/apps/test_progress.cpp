// What swsl-classify says of long work. The lines are those of tests/system/test_progress.py.
#include "../../apps/progress.h"

#include <sstream>

#include "check.h"

using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

Progress::Time now;

std::string last_of(const std::ostringstream& out) {
  const std::string text = out.str();
  return text.substr(text.rfind("\033[K") + 3);
}

}  // namespace

TEST(a_pipe_gets_a_line_every_ten_seconds) {
  std::ostringstream out;
  {
    Progress progress(true, 1000, out, false, [] { return now; });
    for (int second = 0; second < 25; ++second) {
      now += seconds(1);
      for (int i = 0; i < 10; ++i) progress.advance(i == 0);
    }
  }
  CHECK_EQ(out.str(),
           "swsl-classify: 91 of 1,000 images, 9.1 images/s, 10 failed, 1:40 left\n"
           "swsl-classify: 191 of 1,000 images, 9.6 images/s, 20 failed, 1:25 left\n"
           "swsl-classify: 250 of 1,000 images, 10.0 images/s, 25 failed, 1:15 left\n");
}

TEST(a_pipe_gets_lines_within_a_long_batch_too) {
  std::ostringstream out;
  Progress progress(true, {}, out, false, [] { return now; });
  for (int second = 0; second < 25; ++second) {
    now += seconds(1);
    progress.tick();
  }
  CHECK_EQ(out.str(), "swsl-classify: 0 images, 0.0 images/s\nswsl-classify: 0 images, 0.0 images/s\n");
}

TEST(what_is_soon_over_says_nothing) {
  std::ostringstream out;
  for (const bool enabled : {true, false}) {
    Progress progress(enabled, {}, out, false, [] { return now; });
    now += seconds(enabled ? 9 : 99);
    progress.advance(false);
  }
  {
    Progress handful(true, 5, out, true, [] { return now; });
    now += seconds(99);
    handful.advance(false);
  }
  CHECK_EQ(out.str(), "");
}

TEST(a_terminals_line_is_redrawn) {
  std::ostringstream out;
  {
    Progress progress(true, 12'000'000, out, true, [] { return now; });
    now += milliseconds(60);
    progress.advance(false);
    CHECK_EQ(out.str(), "");
    now += milliseconds(60);
    for (int i = 1; i < 1200; ++i) progress.advance(false);
    CHECK_EQ(last_of(out), "2 of 12,000,000 images, 16.7 images/s, 200:00:00 left");
    progress.message("swsl-classify: skipped: a.jpg");
    CHECK_EQ(last_of(out), "swsl-classify: skipped: a.jpg\n");
  }
  CHECK_EQ(last_of(out), "1,200 of 12,000,000 images, 10,000.0 images/s, 20:00 left\n");
}
