#include "model/archive.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

#include "model/utf8.h"

namespace swsl {
namespace {

// PKWARE's application note, section 4.3; all numbers are little-endian.
constexpr std::uint32_t local_signature = 0x04034b50, directory_signature = 0x02014b50,
                        end_signature = 0x06054b50;
constexpr std::uint32_t locator_signature = 0x07064b50, end64_signature = 0x06064b50;
constexpr std::size_t local_bytes = 30, directory_bytes = 46, end_bytes = 22, locator_bytes = 20,
                      end64_bytes = 56;
constexpr std::size_t most_entries = 10'000, longest_name = 1'000;
constexpr std::size_t most_source = std::size_t{4} << 20;  // of one file under code/, unpacked

struct Bytes {
  const std::byte* data;
  std::size_t size;

  template <typename Number>
  Number at(std::size_t offset) const {
    Number number;
    if (offset > size || size - offset < sizeof number) throw ArchiveError("it ends too early");
    std::memcpy(&number, data + offset, sizeof number);
    return number;
  }
  std::string_view text(std::size_t offset, std::size_t length) const {
    if (offset > size || size - offset < length) throw ArchiveError("it ends too early");
    return {reinterpret_cast<const char*>(data) + offset, length};
  }
};

bool is_plain(std::string_view name) {
  if (name.empty() || name.size() > longest_name || name.find('\0') != name.npos ||
      name.find('\\') != name.npos)
    return false;
  for (std::size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('/', begin), name.size());
    const auto part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return detail::is_utf8(name);
}

}  // namespace

Archive::Archive(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe would wait for its writer
  const auto failed = [] { return std::system_error(errno, std::generic_category()); };
  if (file < 0) throw failed();
  struct stat found{};
  void* memory = nullptr;
  const bool regular = fstat(file, &found) == 0 && S_ISREG(found.st_mode);
  size_ = regular ? static_cast<std::size_t>(found.st_size) : 0;
  if (size_ > 0) memory = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
  const auto error = failed();  // before close, which may set errno too
  close(file);
  if (!regular) throw ArchiveError("it is no regular file");
  if (memory == MAP_FAILED) throw error;
  memory_ = {static_cast<const std::byte*>(memory), [size = size_](const std::byte* mapped) {
               if (mapped != nullptr) munmap(const_cast<std::byte*>(mapped), size);
             }};
  read_directory();
}

void Archive::read_directory() {
  const Bytes file{memory_.get(), size_};
  if (size_ < end_bytes || file.at<std::uint32_t>(size_ - end_bytes) != end_signature)
    throw ArchiveError("it does not end as a zip file does");
  const std::size_t end = size_ - end_bytes;
  const auto count = file.at<std::uint16_t>(end + 10);
  const std::size_t begin = file.at<std::uint32_t>(end + 16), bytes = file.at<std::uint32_t>(end + 12);
  std::size_t directory_end = end;
  // PyTorch always writes the records for large files too; they have to say the same.
  if (end >= locator_bytes && file.at<std::uint32_t>(end - locator_bytes) == locator_signature) {
    directory_end = end - locator_bytes - std::min(end64_bytes, end - locator_bytes);
    if (file.at<std::uint64_t>(end - locator_bytes + 8) != directory_end ||
        file.at<std::uint32_t>(directory_end) != end64_signature ||
        file.at<std::uint64_t>(directory_end + 4) != end64_bytes - 12 ||
        file.at<std::uint64_t>(directory_end + 32) != count ||
        file.at<std::uint64_t>(directory_end + 40) != bytes ||
        file.at<std::uint64_t>(directory_end + 48) != begin)
      throw ArchiveError("the records at its end disagree");
  }
  if (file.at<std::uint32_t>(end + 4) != 0 || file.at<std::uint16_t>(end + 8) != count ||
      file.at<std::uint16_t>(end + 20) != 0 || begin > directory_end || directory_end - begin != bytes)
    throw ArchiveError("the records at its end disagree");
  if (count == 0 || count > most_entries)
    throw ArchiveError("it holds " + std::to_string(count) + " entries, expected 1 to " +
                       std::to_string(most_entries));

  std::vector<std::pair<std::size_t, std::size_t>> ranges;
  std::size_t at = begin;
  for (unsigned i = 0; i < count; ++i) {
    if (file.at<std::uint32_t>(at) != directory_signature) throw ArchiveError("its directory is damaged");
    const auto flags = file.at<std::uint16_t>(at + 8), method = file.at<std::uint16_t>(at + 10);
    const std::size_t packed = file.at<std::uint32_t>(at + 20), unpacked = file.at<std::uint32_t>(at + 24);
    const std::size_t name_length = file.at<std::uint16_t>(at + 28), offset = file.at<std::uint32_t>(at + 42);
    const auto name = file.text(at + directory_bytes, name_length);
    const auto refuse = [&](const std::string& why) {
      throw ArchiveError("its entry " + detail::as_utf8(name) + ' ' + why);
    };
    if (!is_plain(name)) refuse("has a name that no file in a folder has");
    const auto inside = name.find('/');
    const std::string folder(name.substr(0, inside == name.npos ? 0 : inside + 1));
    if (i == 0) folder_ = folder;
    if (folder.empty() || folder != folder_) refuse("is not in the folder of the others");
    const auto own = name.substr(folder.size());
    if (flags & 1) refuse("is encrypted");
    const bool stored = method == 0;
    if (stored && packed != unpacked) refuse("has two sizes");
    if (!stored && (method != 8 || !own.starts_with("code/") || unpacked > most_source))
      refuse("is compressed, expected as it is");
    if (file.at<std::uint32_t>(offset) != local_signature || file.at<std::uint16_t>(offset + 8) != method ||
        file.at<std::uint16_t>(offset + 26) != name_length ||
        file.text(offset + local_bytes, name_length) != name)
      refuse("has another header than the directory says");
    const std::size_t data = offset + local_bytes + name_length + file.at<std::uint16_t>(offset + 28);
    if (data > begin || begin - data < packed) refuse("is longer than the file");
    ranges.emplace_back(offset, data + packed);
    add(own, {{memory_.get() + data, packed}, file.at<std::uint32_t>(at + 16), stored});
    at += directory_bytes + name_length + file.at<std::uint16_t>(at + 30) + file.at<std::uint16_t>(at + 32);
  }
  if (at != directory_end) throw ArchiveError("its directory is longer than its entries");
  std::sort(ranges.begin(), ranges.end());
  if (ranges.front().first != 0) throw ArchiveError("it does not begin with an entry");
  for (std::size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) throw ArchiveError("its entries overlap");
}

void Archive::add(std::string_view name, const Entry& entry) {
  if (!entries_.emplace(name, entry).second)
    throw ArchiveError("its entry " + detail::as_utf8(name) + " comes twice");
}

const Archive::Entry* Archive::find(std::string_view name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

std::span<const std::byte> Archive::read(std::string_view name) const {
  const Entry* entry = find(name);
  if (entry == nullptr) throw ArchiveError("it has no entry " + std::string(name));
  if (!entry->stored)
    throw ArchiveError("its entry " + std::string(name) + " is compressed, expected as it is");
  if (crc32(entry->bytes) != entry->crc)
    throw ArchiveError("its entry " + std::string(name) +
                       " is damaged: its CRC is not the one that the directory states");
  return entry->bytes;
}

}  // namespace swsl
