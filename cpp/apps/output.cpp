#include "output.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "json.h"

namespace {

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    char escape[8];
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (static_cast<unsigned char>(c) < 0x20)
      std::snprintf(escape, sizeof escape, "\\u%04x", c), out += escape;
    else
      out += c;
  }
  return out + '"';
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + '"';
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

std::string number(double value, const char* format) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// 9 digits bring a float32 back exactly.
std::string probability(const swsl::Prediction& prediction) { return number(prediction.probability, "%.9g"); }

std::string json_row(const std::string& path, const swsl::StreamResult& result) {
  std::string out = "{\"path\": " + json_string(path);
  if (!result.ok()) return out + ", \"error\": " + json_string(result.error) + "}\n";
  out += ", \"predictions\": [";
  for (const auto& p : result.predictions) {
    if (&p != result.predictions.data()) out += ", ";
    out += "{\"label\": " + json_string(p.label) + ", \"index\": " + std::to_string(p.index) +
           ", \"probability\": " + probability(p) + '}';
  }
  return out + "]}\n";
}

std::string csv_row(int top_k, const std::string& path, const swsl::StreamResult& result) {
  std::string out = csv_field(path) + ',' + csv_field(result.error);
  for (const auto& p : result.predictions)
    out += ',' + csv_field(p.label) + ',' + std::to_string(p.index) + ',' + probability(p);
  return out + std::string(3 * (static_cast<std::size_t>(top_k) - result.predictions.size()), ',') + '\n';
}

std::string table_row(const std::string& path, const swsl::StreamResult& result) {
  if (!result.ok()) return "";  // its error is on stderr
  std::string out = path + '\n';
  for (const auto& p : result.predictions) out += "  " + number(100.0 * p.probability, "%7.2f") + "%  " + p.label + '\n';
  return out;
}

std::runtime_error failure(const std::string& path, const std::string& what) {
  return std::runtime_error(path + ": " + what + ": " + std::strerror(errno));
}

}  // namespace

std::string header(Format format, int top_k) {
  if (format != Format::csv) return "";
  std::string out = "path,error";
  for (int i = 1; i <= top_k; ++i) {
    const std::string rank = std::to_string(i);
    out += ",label_" + rank + ",index_" + rank + ",probability_" + rank;
  }
  return out + '\n';
}

std::string row(Format format, int top_k, const std::string& path, const swsl::StreamResult& result) {
  switch (format) {
    case Format::json: return json_row(path, result);
    case Format::csv: return csv_row(top_k, path, result);
    case Format::table: break;
  }
  return table_row(path, result);
}

PartialFile::PartialFile(const std::string& target, Format format, int top_k, int batch_size, bool resume)
    : target_(target), partial_(path_of(target)), format_(format) {
  file_ = open(partial_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | (resume ? 0 : O_TRUNC), 0666);
  if (file_ < 0) throw failure(partial_, "cannot be written");
  const std::string expected = header(format, top_k);
  keep_whole_batches(expected, batch_size);
  if (lseek(file_, 0, SEEK_END) == 0) append(expected);
}

PartialFile::~PartialFile() {
  if (file_ >= 0) close(file_);
}

void PartialFile::keep_whole_batches(const std::string& expected_header, int batch_size) {
  reader_.open(partial_, std::ios::binary);
  std::streamoff whole = 0;
  std::string record;
  if (!expected_header.empty() && read_record(record)) {
    if (record + '\n' != expected_header)
      throw std::runtime_error(partial_ + ": was begun with other options: its header is \"" + record.substr(0, 80) +
                               "\", expected \"" + expected_header.substr(0, std::min<std::size_t>(80, expected_header.size() - 1)) +
                               "\"; give the same --top-k, or start anew without --resume");
    whole = reader_.tellg();
  }
  const std::streamoff first = whole;
  if (expected_header.empty() || whole > 0)
    for (std::int64_t rows = 1; read_record(record); ++rows)
      if (rows % batch_size == 0) kept_ = rows, whole = reader_.tellg();
  if (ftruncate(file_, whole) != 0) throw failure(partial_, "cannot be cut to its whole rows");
  reader_.clear();
  reader_.seekg(first);
}

// A record without its newline; false for one that has none, or where there is none. A newline in quotes ends no CSV record.
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
  if (!read_record(record)) throw std::runtime_error(partial_ + ": has been changed by another program");
  if (format_ == Format::csv) return first_csv_field(record);
  try {
    return swsl::Json::parse(record).at("path").string();
  } catch (const swsl::JsonError& error) {
    throw std::runtime_error(partial_ + ": row " + std::to_string(checked_ + 1) + ": " + error.what());
  }
}

bool PartialFile::has_next(const std::string& input) {
  if (checked_ == kept_) return false;
  const std::string done = next_path();
  if (done != input) refuse_inputs(done, input);
  ++checked_;
  return true;
}

void PartialFile::refuse_inputs(const std::string& found, const std::string& expected) const {
  const std::string place = std::to_string(checked_ + 1);
  throw std::runtime_error(partial_ + ": row " + place + " is of " + found + ", but input " + place + " is now " + expected +
                           "; give the same inputs, or start anew without --resume");
}

void PartialFile::append(std::string_view rows) {
  while (!rows.empty()) {
    const auto count = ::write(file_, rows.data(), rows.size());
    if (count < 0 && errno != EINTR) throw failure(partial_, "cannot be written");
    if (count > 0) rows.remove_prefix(static_cast<std::size_t>(count));
  }
}

void PartialFile::complete() {
  if (checked_ < kept_) refuse_inputs(next_path(), "missing");
  if (fsync(file_) != 0) throw failure(partial_, "cannot be written");
  if (std::rename(partial_.c_str(), target_.c_str()) != 0) throw failure(target_, "cannot be written");
  // The new name is only safe once the folder is.
  auto folder = std::filesystem::path(target_).parent_path();
  const int handle = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (handle >= 0) {
    fsync(handle);
    close(handle);
  }
}
