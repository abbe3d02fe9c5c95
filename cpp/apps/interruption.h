// Ctrl-C and SIGTERM: the first asks the program to stop, a second one ends it at once.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

class Interruption {
 public:
  // A signal that is ignored, under nohup say, stays so.
  static void watch() {
    if (::pipe(pipe_) != 0) return;
    for (const int end : pipe_) {  // macOS has no pipe2
      fcntl(end, F_SETFD, FD_CLOEXEC);
      fcntl(end, F_SETFL, O_NONBLOCK);
    }
    for (const int signal : {SIGINT, SIGTERM}) {
      struct sigaction action{}, before{};
      action.sa_handler = &note;
      action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
      if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN)
        sigaction(signal, &action, nullptr);
    }
  }

  static int signal() { return signal_; }  // 0: none came

  // Can be read from once a signal has come.
  static int pipe() { return pipe_[0]; }

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
