// The lines of stdin, as they come: with something to do while none is there.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <optional>
#include <string>

#include "interruption.h"

class StdinLines {
 public:
  // The next line, without the \n or \r\n at its end; nothing after the last one, or once a signal has come.
  // Before it waits for input, and again every few milliseconds while it waits, it calls `meanwhile`, until
  // that returns false: nothing is left to be done before the next line.
  std::optional<std::string> next(const std::function<bool()>& meanwhile = {}) {
    while (true) {
      const auto end = buffer_.find('\n', searched_);
      if (end != std::string::npos || (ended_ && begin_ < buffer_.size())) {
        std::string line = buffer_.substr(begin_, end == std::string::npos ? end : end - begin_);
        begin_ = searched_ = end == std::string::npos ? buffer_.size() : end + 1;
        if (line.ends_with('\r')) line.pop_back();
        return line;
      }
      if (ended_) return {};
      buffer_.erase(0, begin_);
      begin_ = 0;
      searched_ = buffer_.size();
      if (wait(meanwhile))
        read_some();
      else
        ended_ = true, buffer_.clear();
    }
  }

 private:
  // False once a signal has come: whichever thread got it, what it wrote to its pipe wakes this one.
  static bool wait(const std::function<bool()>& meanwhile) {
    pollfd inputs[] = {{STDIN_FILENO, POLLIN, 0}, {Interruption::pipe(), POLLIN, 0}};
    for (bool busy = static_cast<bool>(meanwhile); poll(inputs, 2, 0) == 0;) {
      busy = busy && meanwhile();
      if (poll(inputs, 2, busy ? 5 : -1) > 0) break;  // else its time is over
    }
    return Interruption::signal() == 0;
  }

  void read_some() {
    char bytes[1 << 16];
    const auto count = read(STDIN_FILENO, bytes, sizeof bytes);
    if (count > 0)
      buffer_.append(bytes, static_cast<std::size_t>(count));
    else if (count == 0 || errno != EINTR)
      ended_ = true;
  }

  std::string buffer_;
  std::size_t begin_ = 0;     // of the next line
  std::size_t searched_ = 0;  // up to here there is no end of it
  bool ended_ = false;
};
