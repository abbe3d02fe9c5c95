#include "model/json.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <locale>
#include <sstream>

namespace swsl {

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json document() {
    Json root = value("", 0);
    skip_space();
    if (position_ != text_.size()) fail("the end of the text", position_);
    return root;
  }

 private:
  [[noreturn]] void fail(const std::string& expected, std::size_t at) const {
    std::string found = "the end of the text";
    if (at < text_.size()) {
      const auto byte = static_cast<unsigned char>(text_[at]);
      char name[16];
      std::snprintf(name, sizeof name, byte > ' ' && byte < 127 ? "'%c'" : "byte 0x%02x", byte);
      found = name;
    }
    throw JsonError("JSON: expected " + expected + " at offset " + std::to_string(at) + ", found " + found);
  }

  void skip_space() {
    while (position_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[position_]) != std::string_view::npos)
      ++position_;
  }

  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

  bool take(char wanted) {
    if (peek() != wanted || position_ >= text_.size()) return false;
    ++position_;
    return true;
  }

  Json value(std::string path, int depth) {
    if (depth > Json::max_depth)
      throw JsonError("JSON: nested deeper than " + std::to_string(Json::max_depth) + " at offset " +
                      std::to_string(position_));
    if (++values_ > Json::max_values)
      throw JsonError("JSON: more than " + std::to_string(Json::max_values) + " values");
    skip_space();
    Json result;
    switch (peek()) {
      case '{': result.value_ = object(path, depth); break;
      case '[': result.value_ = array(path, depth); break;
      case '"': result.value_ = string(); break;
      case 't':
        word("true");
        result.value_ = true;
        break;
      case 'f':
        word("false");
        result.value_ = false;
        break;
      case 'n': word("null"); break;
      default: number(result);
    }
    result.path_ = std::move(path);
    return result;
  }

  void word(std::string_view expected) {
    if (text_.substr(position_, expected.size()) != expected) fail(std::string(expected), position_);
    position_ += expected.size();
  }

  Json::Members object(const std::string& path, int depth) {
    Json::Members members;
    take('{');
    skip_space();
    if (take('}')) return members;
    do {
      skip_space();
      const std::size_t start = position_;
      if (peek() != '"') fail("a key in quotes", position_);
      std::string key = string();
      skip_space();
      if (!take(':')) fail("':'", position_);
      Json member = value(path.empty() ? key : path + '.' + key, depth + 1);
      if (!members.emplace(key, std::move(member)).second)
        throw JsonError("JSON: the key \"" + key + "\" comes twice, again at offset " +
                        std::to_string(start));
      skip_space();
    } while (take(','));
    if (!take('}')) fail("',' or '}'", position_);
    return members;
  }

  std::vector<Json> array(const std::string& path, int depth) {
    std::vector<Json> items;
    take('[');
    skip_space();
    if (take(']')) return items;
    do {
      items.push_back(value(path + '[' + std::to_string(items.size()) + ']', depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("',' or ']'", position_);
    return items;
  }

  void number(Json& result) {
    const std::size_t start = position_;
    const auto digits = [&] {
      const std::size_t first = position_;
      while (peek() >= '0' && peek() <= '9') ++position_;
      if (position_ == first) fail("a value", start);
    };
    take('-');
    if (!take('0')) digits();
    bool whole = true;
    if (take('.')) whole = false, digits();
    if (take('e') || take('E')) {
      whole = false;
      if (!take('+')) take('-');
      digits();
    }
    const char* first = text_.data() + start;
    const char* last = text_.data() + position_;
    if (std::int64_t integer = 0; whole && std::from_chars(first, last, integer).ec == std::errc()) {
      result.value_ = integer;
      return;
    }
    double real = 0;
#ifdef __cpp_lib_to_chars
    const bool held = std::from_chars(first, last, real).ec == std::errc();
#else  // macOS's library reads doubles in streams alone
    std::istringstream text(std::string(first, last));
    text.imbue(std::locale::classic());
    const bool held = static_cast<bool>(text >> real);
#endif
    if (!held) fail("a number that a double can hold", start);
    result.value_ = real;
  }

  unsigned hex4() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++position_) {
      const char c = peek();
      const unsigned digit = c >= '0' && c <= '9'   ? c - '0'
                             : c >= 'a' && c <= 'f' ? c - 'a' + 10u
                             : c >= 'A' && c <= 'F' ? c - 'A' + 10u
                                                    : 16u;
      if (digit == 16) fail("four hexadecimal digits", position_);
      code = code * 16 + digit;
    }
    return code;
  }

  void append_escape(std::string& out) {
    const std::size_t start = position_ - 1;
    static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    const char letter = peek();
    ++position_;
    if (const auto which = letters.find(letter); letter != '\0' && which != std::string_view::npos) {
      out += meanings[which];
      return;
    }
    if (letter != 'u') fail("an escape that JSON has", start);
    unsigned code = hex4();
    if (code >= 0xd800 && code < 0xdc00) {
      if (!take('\\') || !take('u')) fail("the second half of a surrogate pair", position_);
      const unsigned low = hex4();
      if (low < 0xdc00 || low > 0xdfff) fail("the second half of a surrogate pair", start);
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      fail("the first half of a surrogate pair", start);
    }
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xc0 | code >> 6);
      out += static_cast<char>(0x80 | (code & 63));
    } else if (code < 0x10000) {
      out += static_cast<char>(0xe0 | code >> 12);
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    } else {
      out += static_cast<char>(0xf0 | code >> 18);
      out += static_cast<char>(0x80 | (code >> 12 & 63));
      out += static_cast<char>(0x80 | (code >> 6 & 63));
      out += static_cast<char>(0x80 | (code & 63));
    }
  }

  std::string string() {
    std::string out;
    take('"');
    while (true) {
      if (position_ >= text_.size()) fail("'\"'", position_);
      const char c = text_[position_];
      if (static_cast<unsigned char>(c) < 0x20) fail("an escape instead of a control character", position_);
      ++position_;
      if (c == '"') return out;
      if (c == '\\')
        append_escape(out);
      else
        out += c;
    }
  }

  std::string_view text_;
  std::size_t position_ = 0;
  int values_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

const char* Json::kind() const {
  static constexpr const char* names[] = {"null",     "a boolean", "a number", "an integer",
                                          "a string", "an array",  "an object"};
  return names[value_.index()];
}

template <typename T>
const T& Json::get(const char* expected) const {
  if (const T* held = std::get_if<T>(&value_)) return *held;
  throw JsonError("\"" + path_ + "\": expected " + expected + ", found " + kind());
}

bool Json::boolean() const { return get<bool>("a boolean"); }
const std::string& Json::string() const { return get<std::string>("a string"); }
const std::vector<Json>& Json::items() const { return get<std::vector<Json>>("an array"); }
std::int64_t Json::integer() const { return get<std::int64_t>("an integer"); }

double Json::number() const {
  if (const auto* whole = std::get_if<std::int64_t>(&value_)) return static_cast<double>(*whole);
  return get<double>("a number");
}

void Json::refuse(const std::string& expected, const std::string& found) const {
  throw JsonError("\"" + path_ + "\": expected " + expected + ", found " + found);
}

const std::map<std::string, Json>& Json::members() const { return get<Members>("an object"); }

const Json& Json::at(const std::string& key) const {
  const auto& members = this->members();
  if (const auto found = members.find(key); found != members.end()) return found->second;
  throw JsonError("\"" + (path_.empty() ? key : path_ + '.' + key) + "\" is missing");
}

}  // namespace swsl
