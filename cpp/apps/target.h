// The file, device or pipe that a user's --output means, and the lock that keeps a second run from it. As in
// Python: swsl/system/files.py and swsl/bulk/run_record.py.
#pragma once

#include <string>
#include <string_view>

struct Target {
  std::string path;      // of the end of a chain of links, or the user's own words where there are none
  bool special = false;  // a device, a pipe or an open descriptor: written into, never replaced
  int descriptor = -1;   // of this process, where it is one (/dev/stdout)
};

// Throws std::runtime_error: a directory, a missing folder, links in circles.
Target resolve_target(const std::string& path);

// A device or pipe, to write into; waits for a pipe's reader. Throws std::runtime_error.
int open_special(const Target& target);

// All of the text into an open file, which errors call by its name. Throws std::runtime_error.
void write_whole(int file, const std::string& name, std::string_view text);

// Held by one process at a time: the kernel's lock on FILE.lock, which holds that process's number. A process
// that is gone holds none. Throws std::runtime_error, which names the holder.
class OutputLock {
 public:
  explicit OutputLock(const std::string& target);
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;

 private:
  bool try_lock(const std::string& target);

  const std::string path_;
  int file_ = -1;
};
