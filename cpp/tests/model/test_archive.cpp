#include "model/archive.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "test_data.h"

using swsl::Archive;
using swsl::ArchiveError;

namespace {

std::uint32_t crc_of(std::string_view text) { return swsl::crc32(std::as_bytes(std::span(text))); }

// A file with these bytes, as long as this lives.
struct File {
  explicit File(const std::string& bytes)
      : path(std::filesystem::temp_directory_path() / ("swsl-archive-" + std::to_string(getpid()))) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  ~File() { std::filesystem::remove(path); }
  std::filesystem::path path;
};

void expect(const std::string& bytes, const char* why) {
  const File file(bytes);
  CHECK_THROWS(ArchiveError, why, Archive(file.path));
}

}  // namespace

TEST(crc32_is_iso_3309s) {
  CHECK_EQ(crc_of("123456789"), 0xcbf43926u);
  CHECK_EQ(crc_of(""), 0u);
  // The definition, a bit at a time, over every length that the slices of 16 bytes can leave.
  for (std::size_t size = 0; size < 70; ++size) {
    std::string text;
    for (std::size_t i = 0; i < size; ++i) text += static_cast<char>(i * 37 + size);
    std::uint32_t remainder = ~0u;
    for (const char byte : text) {
      remainder ^= static_cast<unsigned char>(byte);
      for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? 0xedb88320u : 0);
    }
    CHECK_EQ(crc_of(text), ~remainder);
  }
}

TEST(entries_are_read_where_they_lie) {
  const Archive archive(data("tiny.pt"));
  CHECK(archive.find("nothing") == nullptr);
  CHECK_THROWS(ArchiveError, "no entry nothing", archive.read("nothing"));
  CHECK_EQ(archive.read("constants/0").size(), std::size_t{64 * 3 * 7 * 7 * 4});
  CHECK_EQ(archive.read("byteorder").size(), 6u);
  CHECK(archive.find("data.pkl")->stored);
}

TEST(no_byte_of_a_sound_archive_is_missing_or_too_much) {
  const std::string sound = contents(data("tiny.pt"));
  expect("", "does not end as a zip file does");
  expect(sound.substr(0, sound.size() - 1), "does not end as a zip file does");
  expect(sound + '\0', "does not end as a zip file does");
  expect(sound + sound, "disagree");
  expect("PK\3\4" + sound, "disagree");
  CHECK_THROWS(ArchiveError, "no regular file", Archive("/dev/null"));
  CHECK_THROWS(std::system_error, "", Archive(data("nothing.pt")));
}

// Whatever a single changed byte of the directory does, it is read as before or refused.
TEST(a_changed_directory_is_read_or_refused) {
  std::string bytes = contents(data("tiny.pt"));
  const auto directory = bytes.find("PK\1\2");
  CHECK(directory != std::string::npos);
  for (std::size_t at = directory; at < bytes.size(); at += 7) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ 0x41);
    const File file(changed);
    try {
      const Archive archive(file.path);
      if (archive.find("constants/0") != nullptr) archive.read("constants/0");
    } catch (const ArchiveError& error) {
      CHECK(!std::string(error.what()).empty());
    }
  }
}
