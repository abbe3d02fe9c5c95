// Ctrl-C and SIGTERM: the first asks the program to stop, a second one ends it at once.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>

class Interruption {
 public:
  // A signal that is ignored, under nohup say, stays so.
  static void watch() {
    if (pipe2(pipe_, O_CLOEXEC | O_NONBLOCK) != 0) return;
    for (const int signal : {SIGINT, SIGTERM}) {
      struct sigaction action{}, before{};
      action.sa_handler = &note;
      action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
      if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
    }
  }

  static int signal() { return signal_; }  // 0: none came

  // The next line of stdin without its newline. False at the end, or once a signal has come: whichever thread got that, a byte
  // in a pipe wakes who waits here.
  static bool read_line(std::string& line) {
    static std::string buffer;
    static std::size_t place = 0;
    std::size_t end;
    while ((end = buffer.find('\n', place)) == std::string::npos) {
      buffer.erase(0, place);
      place = 0;
      pollfd files[] = {{STDIN_FILENO, POLLIN, 0}, {pipe_[0], POLLIN, 0}};
      while (poll(files, 2, -1) < 0 && errno == EINTR) {
      }
      if (signal_ != 0) return false;
      char piece[1 << 16];
      const auto count = read(STDIN_FILENO, piece, sizeof piece);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        line = std::move(buffer);
        buffer.clear();
        return !line.empty();
      }
      buffer.append(piece, static_cast<std::size_t>(count));
    }
    line = buffer.substr(place, end - place);
    place = end + 1;
    return true;
  }

 private:
  static void note(int signal) {
    const int error = errno;
    signal_ = signal;
    static_cast<void>(!write(pipe_[1], "", 1));
    errno = error;
  }

  static inline std::atomic<int> signal_ = 0;
  static inline int pipe_[2] = {-1, -1};
};
