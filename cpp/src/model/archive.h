// A zip file whose entries are read where they lie: mapped into memory, so that weights cost no copy and no
// time until they are used.
//
//   const Archive archive("model.pt");
//   const auto bytes = archive.read("extra/swsl.json");
//
// Only what PyTorch writes is taken, and nothing that could be read in two ways: one folder that holds all
// entries, none of which overlap or come twice, entries stored as they are but for the sources under code/,
// which LibTorch alone reads.
//
// Errors: ArchiveError, whose message does not name the file; std::system_error where it cannot be read.
//
// Thread safety: const functions may be called from any number of threads. A file that is cut short while it
// is mapped ends the program by SIGBUS; one that is replaced under its name, as every careful writer does,
// stays as it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace swsl {

class ArchiveError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Archive {
 public:
  struct Entry {
    std::span<const std::byte> bytes;
    std::uint32_t crc = 0;  // that the directory states
    bool stored = true;
  };

  explicit Archive(const std::string& path);

  std::size_t size() const { return size_; }

  // By the name inside the folder: "extra/swsl.json". Null where there is none.
  const Entry* find(std::string_view name) const;

  // The bytes of a stored entry, checked against their CRC.
  std::span<const std::byte> read(std::string_view name) const;

 private:
  void read_directory();
  void add(std::string_view name, const Entry& entry);

  std::shared_ptr<const std::byte> memory_;
  std::size_t size_ = 0;
  std::string folder_;  // with its slash
  std::map<std::string, Entry, std::less<>> entries_;
};

// Of ISO 3309, as zip files have it.
std::uint32_t crc32(std::span<const std::byte> bytes);

}  // namespace swsl
