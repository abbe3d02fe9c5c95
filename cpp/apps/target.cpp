#include "target.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <stdexcept>

namespace fs = std::filesystem;

Target resolve_target(const std::string& path) {
  const auto refuse = [&](const std::string& why) { throw std::runtime_error(path + ": " + why); };
  std::error_code ignored;
  fs::path target = path;
  for (int links = 0;; ++links) {
    if (links == 40) refuse("is a link that leads back to itself; remove it or name another file");
    const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
    const fs::path real = fs::canonical(folder, ignored);
    if (ignored) refuse("there is no folder " + folder.string() + "; make it first");
    const std::string name = target.filename().string();
    if (real == fs::canonical("/dev/fd", ignored) && !name.empty() &&
        std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isdigit(c); }))
      return {path, true, std::stoi(name)};
    if (!fs::is_symlink(fs::symlink_status(target, ignored))) break;
    const fs::path following = real / fs::read_symlink(target, ignored);
    if (fs::exists(target, ignored) && !fs::exists(following, ignored))
      break;  // another process's pipe: "pipe:[123]"
    target = following;
  }
  const auto status = fs::status(target, ignored);
  if (fs::is_directory(status)) refuse("is a directory; expected the name of a file to write");
  if (target.filename().empty()) refuse("expected the name of a file to write");
  return {target.string(), fs::exists(status) && !fs::is_regular_file(status)};
}

int open_special(const Target& target) {
  struct stat found{};
  if (target.descriptor < 0 && stat(target.path.c_str(), &found) == 0 &&
      (S_ISSOCK(found.st_mode) || S_ISBLK(found.st_mode)))
    throw std::runtime_error(
        target.path + ": expected a file, a pipe or a character device, got a socket or a block device");
  const int file = target.descriptor >= 0 ? dup(target.descriptor)
                                          : open(target.path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (file < 0) throw std::runtime_error(target.path + ": cannot be opened: " + std::strerror(errno));
  return file;
}

void write_whole(int file, const std::string& name, std::string_view text) {
  while (!text.empty()) {
    const auto count = write(file, text.data(), text.size());
    if (count < 0 && errno != EINTR)
      throw std::runtime_error(name + ": cannot be written: " + std::strerror(errno));
    if (count > 0) text.remove_prefix(static_cast<std::size_t>(count));
  }
}

OutputLock::OutputLock(const std::string& target) : path_(target + ".lock") {
  while (!try_lock(target)) {
  }
  utsname host{};
  uname(&host);
  const std::string holder = std::to_string(getpid()) + " on " + host.nodename + '\n';
  if (ftruncate(file_, 0) != 0 || pwrite(file_, holder.data(), holder.size(), 0) < 0)
    std::cerr << "swsl-classify: warning: " << path_ << ": cannot be written: " << std::strerror(errno)
              << '\n';
}

// False where its holder removed the file just now.
bool OutputLock::try_lock(const std::string& target) {
  const auto refuse = [&](const std::string& message) {
    if (file_ >= 0) close(file_);
    throw std::runtime_error(message);
  };
  file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (file_ < 0) refuse(path_ + ": cannot be written: " + std::strerror(errno));
  if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      char text[200];
      const auto length = pread(file_, text, sizeof text, 0);
      std::string holder(text, length > 0 ? static_cast<std::size_t>(length) : 0);
      while (holder.ends_with('\n')) holder.pop_back();
      refuse(target + ": is being written by process " + (holder.empty() ? "that has just begun" : holder) +
             "; let it end, or give another -o");
    }
    // Some network file systems have no locks.
    std::cerr << "swsl-classify: warning: " << path_ << ": cannot be locked (" << std::strerror(errno)
              << "): nothing keeps a second run from " << target << '\n';
  }
  struct stat ours{}, named{};
  if (fstat(file_, &ours) == 0 && stat(path_.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
      ours.st_dev == named.st_dev)
    return true;
  close(file_);
  return false;
}

OutputLock::~OutputLock() {
  unlink(path_.c_str());  // while it is ours; who opened it meanwhile sees that it has no name
  close(file_);
}
