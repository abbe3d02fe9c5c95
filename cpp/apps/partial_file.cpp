#include "partial_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <sstream>
#include <stdexcept>

#include "model/json.h"
#include "target.h"

namespace fs = std::filesystem;

namespace {

std::string record_path(const std::string& path) { return path + ".run.json"; }

std::runtime_error failure(const std::string& path, const std::string& what) {
  return std::runtime_error(path + ": " + what + ": " + std::strerror(errno));
}

std::string first_csv_field(const std::string& record) {
  if (!record.starts_with('"')) return record.substr(0, record.find(','));
  std::string out;
  for (std::size_t i = 1; i < record.size(); ++i) {
    if (record[i] == '"' && record[++i] != '"') break;
    out += record[i];
  }
  return out;
}

// Of a member of a record; "null" where it has none.
std::string shown(const swsl::Json& record, const std::string& name) {
  const auto found = record.members().find(name);
  if (found == record.members().end() || found->second.is_null()) return "null";
  for (const auto& show :
       {+[](const swsl::Json& j) { return j.string(); },
        +[](const swsl::Json& j) { return std::to_string(j.integer()); },
        +[](const swsl::Json& j) { return std::string(j.boolean() ? "true" : "false"); }}) {
    try {
      return show(found->second);
    } catch (const swsl::JsonError&) {  // of another kind
    }
  }
  return "something else";
}

}  // namespace

std::string run_record(const swsl::Runner& runner, const swsl::RunnerOptions& options, int top_k) {
  const auto truth = [](bool value) { return value ? "true" : "false"; };
  std::ostringstream out;
  out << "{\"model\": \"" << runner.metadata().fingerprint << "\", \"dtype\": \"" << runner.info().dtype
      << "\", \"exif_orientation\": " << truth(options.exif_orientation)
      << ", \"dct_scaling\": " << truth(options.dct_scaling) << ", \"nvjpeg\": " << truth(options.nvjpeg)
      << ", \"max_pixels\": " << options.max_pixels << ", \"outputs\": \"predictions\", \"top_k\": " << top_k
      << "}\n";
  return out.str();
}

PartialFile::PartialFile(const std::string& target, Format format, int top_k, int batch_size,
                         const std::string& record, bool resume)
    : target_(target),
      partial_(path_of(target)),
      header_(header(format, top_k)),
      record_(record),
      format_(format),
      batch_size_(batch_size) {
  if (resume && open_reader(partial_) > 0) {
    check_record(partial_);
    open_partial(kept_ > 0, whole_);
  } else if (resume && fs::exists(target)) {
    check_record(target);
    kept_ = open_reader(target);
    complete_ = true;
    remove_empty();  // what a kill amid the last steps has left
  } else {
    kept_ = 0;
    open_partial(false, 0);
  }
}

PartialFile::~PartialFile() {
  if (file_ < 0) return;
  close(file_);
  if (!complete_ && rows() == 0) remove_empty();
}

void PartialFile::remove_empty() const {
  unlink(partial_.c_str());
  unlink(record_path(partial_).c_str());
}

// Sets what is kept of the file's rows, lets the reader stand before the first one, and returns how many are
// whole.
std::int64_t PartialFile::open_reader(const std::string& path) {
  reader_ = std::ifstream(path, std::ios::binary);
  kept_ = 0, whole_ = 0;
  std::string record;
  if (!header_.empty() && read_record(record)) whole_ = reader_.tellg();
  const std::streamoff first = whole_;
  std::int64_t rows = 0;
  while (read_record(record))
    if (++rows % batch_size_ == 0) kept_ = rows, whole_ = reader_.tellg();
  reader_.clear();
  reader_.seekg(first);
  return rows;
}

void PartialFile::open_partial(bool keep, std::streamoff size) {
  file_ = open(partial_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | (keep ? 0 : O_TRUNC), 0666);
  if (file_ < 0) throw failure(partial_, "cannot be written");
  if (keep) {
    if (ftruncate(file_, size) != 0) throw failure(partial_, "cannot be cut to its whole rows");
  } else {
    append(header_, 0);
    write_record(partial_);  // after its rows are gone: rows never have another run's record
  }
}

// So that no kill leaves neither file: a copy goes on, and FILE stays until that is whole.
void PartialFile::copy_back() {
  write_record(partial_);
  const std::string copy = partial_ + ".copy";
  fs::copy_file(target_, copy, fs::copy_options::overwrite_existing);
  if (std::rename(copy.c_str(), partial_.c_str()) != 0) throw failure(partial_, "cannot be written");
  open_partial(true, static_cast<std::streamoff>(fs::file_size(partial_)));
  complete_ = false;
}

void PartialFile::write_record(const std::string& path) const {
  const std::string name = record_path(path), temporary = name + ".new";
  if (!(std::ofstream(temporary, std::ios::binary) << record_ << std::flush))
    throw failure(temporary, "cannot be written");
  if (std::rename(temporary.c_str(), name.c_str()) != 0) throw failure(name, "cannot be written");
}

void PartialFile::check_record(const std::string& path) const {
  std::ostringstream text;
  text << std::ifstream(record_path(path), std::ios::binary).rdbuf();
  std::string differences;
  try {
    const auto found = swsl::Json::parse(text.str()), expected = swsl::Json::parse(record_);
    std::set<std::string> names;
    for (const auto* record : {&found, &expected})
      for (const auto& member : record->members()) names.insert(member.first);
    for (const auto& name : names) {
      const std::string then = shown(found, name), now = shown(expected, name);
      if (then != now)
        differences += (differences.empty() ? "" : ", ") + name + ' ' + then.substr(0, 16) + " and not " +
                       now.substr(0, 16);
    }
  } catch (const swsl::JsonError&) {
    throw std::runtime_error(path +
                             ": does not say what made it (an older version?); start anew without --resume");
  }
  if (!differences.empty())
    throw std::runtime_error(path + ": was made with " + differences +
                             "; give the same model and options, or start anew without --resume");
}

// A record without its newline; false for one that has none, or where there is none. A newline in quotes ends
// no CSV record.
bool PartialFile::read_record(std::string& record) {
  record.clear();
  bool quoted = false;
  for (std::string line; std::getline(reader_, line) && !reader_.eof();) {
    record += line;
    if (format_ == Format::csv && std::count(line.begin(), line.end(), '"') % 2 == 1) quoted = !quoted;
    if (!quoted) return true;
    record += '\n';
  }
  return false;
}

std::string PartialFile::next_path() {
  std::string record;
  if (!read_record(record)) throw std::runtime_error(source() + ": has been changed by another program");
  if (format_ == Format::csv) return first_csv_field(record);
  try {
    return swsl::Json::parse(record).at("path").string();
  } catch (const swsl::JsonError& error) {
    throw std::runtime_error(source() + ": row " + std::to_string(checked_ + 1) + ": " + error.what());
  }
}

bool PartialFile::has_next(const std::string& input) {
  if (checked_ == kept_) {
    if (complete_) copy_back();
    return false;
  }
  const std::string done = next_path(), now = written_name(input);
  if (done != now) refuse_inputs(done, now);
  ++checked_;
  return true;
}

void PartialFile::refuse_inputs(const std::string& found, const std::string& expected) const {
  const std::string place = std::to_string(checked_ + 1);
  throw std::runtime_error(source() + ": row " + place + " is of " + found + ", but input " + place +
                           " is now " + expected + "; give the same inputs, or start anew without --resume");
}

void PartialFile::append(std::string_view rows, std::int64_t count) {
  write_whole(file_, partial_, rows);
  added_ += count;
}

void PartialFile::complete() {
  if (checked_ < kept_) refuse_inputs(next_path(), "missing");
  if (complete_) return;
  write_record(target_);  // while there is a partial file, the finished one's record is not asked for
  if (struct stat before{}; stat(target_.c_str(), &before) == 0) {
    // Only root gives files away, and others only to their groups: then the writer owns it, as after `mv`.
    static_cast<void>(fchown(file_, static_cast<uid_t>(-1), before.st_gid) +
                      fchown(file_, before.st_uid, static_cast<gid_t>(-1)));
    if (fchmod(file_, before.st_mode & 0777) != 0)
      throw failure(partial_, "cannot get the mode of the file before it");
  }
  if (fsync(file_) != 0) throw failure(partial_, "cannot be written");
  if (std::rename(partial_.c_str(), target_.c_str()) != 0) throw failure(target_, "cannot be written");
  complete_ = true;
  unlink(record_path(partial_).c_str());
  // The new name is only safe once the folder is.
  auto folder = fs::path(target_).parent_path();
  const int handle = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (handle >= 0) {
    fsync(handle);
    close(handle);
  }
}
