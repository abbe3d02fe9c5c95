#include "sources.h"

#include "lines.h"
#include "progress.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <set>
#include <system_error>
#include <utility>

namespace {

namespace fs = std::filesystem;

class Skipped {
 public:
  void add(const std::string& kind, const fs::path& path) {
    auto place =
        std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& known) { return known.name == kind; });
    if (place == kinds_.end()) place = kinds_.insert(place, {kind, path.string(), 0});
    ++place->count;
  }

  std::string line() const {
    std::string out;
    for (const auto& kind : kinds_)
      out += (out.empty() ? "skipped: " : ", ") + with_commas(std::to_string(kind.count)) + ' ' + kind.name +
             " (" + kind.example + (kind.count > 1 ? ", …)" : ")");
    return out;
  }

 private:
  struct Kind {
    std::string name, example;
    std::int64_t count;
  };
  std::vector<Kind> kinds_;
};

bool is_hidden(const std::string& name) {
  return name.starts_with('.') || name == "@eaDir" || name == "__MACOSX";
}

// Both as in swsl/bulk/sources.py: a folder has the same images there.
const std::set<std::string> image_suffixes = {
    ".jpg", ".jpeg", ".jpe",  ".jfif",  ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib",
    ".tif", ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".j2c",  ".jpc",  ".jpf", ".jpx", ".ppm",
    ".pgm", ".pbm",  ".pnm",  ".tga",   ".qoi", ".psd", ".pcx",  ".sgi",  ".dds", ".ico"};
const std::set<std::string> unread_suffixes = {
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".exr", ".hdr", ".svg", ".eps", ".xcf", ".dng", ".cr2",
    ".cr3",  ".crw",  ".nef", ".nrw", ".arw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"};

std::string suffix_of(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return suffix;
}

// Returns whether it has taken anything.
bool walk(const fs::path& folder, const std::function<void(const std::string&)>& take, Skipped& skipped) {
  std::vector<fs::directory_entry> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    entries.push_back(*it);
  if (error) {  // opening it says what is wrong
    take(folder.string());
    return true;
  }
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.path().native() < b.path().native(); });

  bool found = false;
  std::vector<fs::path> folders;
  for (const auto& entry : entries) {
    const fs::path& path = entry.path();
    const bool hidden = is_hidden(path.filename().string());
    if (entry.is_directory(error)) {
      if (hidden)
        skipped.add("hidden files and folders", path);
      else if (entry.is_symlink(error))  // which may lead back up
        skipped.add("links to folders", path);
      else
        folders.push_back(path);
    } else if (const std::string suffix = suffix_of(path); unread_suffixes.contains(suffix)) {
      if (!hidden) skipped.add(suffix + " images", path);
    } else if (image_suffixes.contains(suffix)) {
      if (hidden)
        skipped.add("hidden files and folders", path);
      else if (entry.is_regular_file(error) || !fs::exists(path, error))
        found = true, take(path.string());
      else
        skipped.add("pipes, sockets and devices", path);
    }
  }
  for (const auto& inner : folders) found |= walk(inner, take, skipped);
  return found;
}

}  // namespace

void for_each_image(const std::vector<std::string>& images,
                    const std::function<void(const std::string& path)>& take,
                    const std::function<void(const std::string& line)>& report,
                    const std::function<bool()>& meanwhile) {
  Skipped skipped;
  for (const auto& image : images) {
    std::error_code ignored;
    if (image == "-") {
      for (StdinLines lines; const auto line = lines.next(meanwhile);)
        if (!line->empty()) take(*line);
    } else if (!fs::is_directory(image, ignored) || !walk(image, take, skipped)) {
      take(image);
    }
  }
  if (const std::string line = skipped.line(); report && !line.empty()) report(line);
}

std::string why_no_images(const std::vector<std::string>& images, const std::string& path) {
  std::error_code error;
  if (std::find(images.begin(), images.end(), path) == images.end() || !fs::is_directory(path, error))
    return "";
  const bool empty = fs::directory_iterator(path, error) == fs::directory_iterator();
  if (error) return "";  // which its error says already
  return path + (empty ? ": this folder is empty" : ": holds no image of a format that is read");
}
