// A small strict JSON (RFC 8259) reader for metadata of a few hundred kilobytes: no dependency, errors with
// an offset.
//
//   const Json root = Json::parse(text);
//   root.at("labels").items()[0].string();
//
// Errors: JsonError; those of `at` and of the typed readers name the value by its path ("golden.shape[2]").
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace swsl {

class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  // The whole text must be one value; keys of an object must differ; nesting is limited to `max_depth`.
  static Json parse(std::string_view text);
  // and so is the number of values, each of which takes many times its text's memory.
  static constexpr int max_depth = 64, max_values = 300'000;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool boolean() const;
  double number() const;
  std::int64_t integer() const;  // refuses 1.5 and what int64 cannot hold
  const std::string& string() const;
  const std::vector<Json>& items() const;
  const std::map<std::string, Json>& members() const;
  const Json& at(const std::string& key) const;

  // Throws that this value is not what it has to be.
  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const;

 private:
  friend class JsonParser;
  using Members = std::map<std::string, Json>;
  template <typename T>
  const T& get(const char* expected) const;
  const char* kind() const;

  std::variant<std::nullptr_t, bool, double, std::int64_t, std::string, std::vector<Json>, Members> value_ =
      nullptr;
  std::string path_;  // for errors
};

}  // namespace swsl
