// What swsl-classify writes: the same rows, in the same files, as `swsl classify`.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

#include <swsl/stream.h>

enum class Format { table, json, csv };

// CSV has one row an image, whatever top_k: `path,error` and then label, index and probability of each class.
std::string header(Format format, int top_k);
std::string row(Format format, int top_k, const std::string& path, const swsl::StreamResult& result);

// Rows into FILE.partial, which becomes FILE by a rename once it has all. Rows come in the order of the inputs, one each, so
// the whole rows of an interrupted run say where to go on. Throws std::runtime_error.
class PartialFile {
 public:
  // The formats with a row for every input: json or csv. `resume` keeps the rows of whole batches that are there: the images
  // after them are then computed in the same batches as without an interruption, and come to the same last digit.
  PartialFile(const std::string& target, Format format, int top_k, int batch_size, bool resume);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;

  static std::string path_of(const std::string& target) { return target + ".partial"; }

  // For each input from the first on: whether its row is there. Another input's row in its place is an error.
  bool has_next(const std::string& input);

  // Whole rows, in one write: whatever kills the program, only the last row can be torn.
  void append(std::string_view rows);

  // Every input has been asked for and has its row.
  void complete();

  std::int64_t kept() const { return kept_; }  // rows of the interrupted run

 private:
  void keep_whole_batches(const std::string& expected_header, int batch_size);
  bool read_record(std::string& record);
  std::string next_path();
  [[noreturn]] void refuse_inputs(const std::string& found, const std::string& expected) const;

  const std::string target_, partial_;
  const Format format_;
  int file_ = -1;
  std::ifstream reader_;
  std::int64_t kept_ = 0, checked_ = 0;
};
