#include "output.h"

#include <cstdio>

#include "model/utf8.h"

namespace {

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    char escape[8];
    static constexpr std::string_view letters = "\b\f\n\r\t";  // which Python writes by their letters
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (const auto which = letters.find(c); which != std::string_view::npos)
      (out += '\\') += "bfnrt"[which];
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

std::string number(double value, const char* format) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// 9 digits bring a float32 back exactly.
std::string probability(const swsl::Prediction& prediction) { return number(prediction.probability, "%.9g"); }

std::string json_row(const std::string& path, const swsl::Result& result) {
  std::string out = "{\"path\": " + json_string(written_name(path));
  if (!result.ok()) return out + ", \"error\": " + json_string(written_error(result.error)) + "}\n";
  out += ", \"predictions\": [";
  for (const auto& p : result.predictions) {
    if (&p != result.predictions.data()) out += ", ";
    out += "{\"label\": " + json_string(p.label) + ", \"index\": " + std::to_string(p.index) +
           ", \"probability\": " + probability(p) + '}';
  }
  return out + "]}\n";
}

std::string csv_row(int top_k, const std::string& path, const swsl::Result& result) {
  std::string out = csv_field(written_name(path)) + ',' + csv_field(written_error(result.error));
  for (const auto& p : result.predictions)
    out += ',' + csv_field(p.label) + ',' + std::to_string(p.index) + ',' + probability(p);
  return out + std::string(3 * (static_cast<std::size_t>(top_k) - result.predictions.size()), ',') + '\n';
}

std::string table_row(const std::string& path, const swsl::Result& result) {
  if (!result.ok()) return "";  // its error is on stderr
  std::string out = written_name(path) + '\n';
  for (const auto& p : result.predictions)
    out += "  " + number(100.0 * p.probability, "%7.2f") + "%  " + p.label + '\n';
  return out;
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

std::string row(Format format, int top_k, const std::string& path, const swsl::Result& result) {
  switch (format) {
    case Format::json: return json_row(path, result);
    case Format::csv: return csv_row(top_k, path, result);
    case Format::table: break;
  }
  return table_row(path, result);
}

std::string written_name(std::string_view name) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  std::string out;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const bool ambiguous =
        i + 3 < name.size() && name.substr(i, 2) == "\\x" && is_digit(name[i + 2]) && is_digit(name[i + 3]);
    out += ambiguous ? "\\x5c" : std::string(1, name[i]);
  }
  return swsl::detail::as_utf8(out);
}

std::string written_error(std::string_view error) { return swsl::detail::as_utf8(error); }
