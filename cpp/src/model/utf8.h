// Text that may hold the name of a file, which may be any bytes, as UTF-8.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>

namespace swsl::detail {

// The bytes of the UTF-8 sequence (RFC 3629) that `text` begins with; 0 where it begins with none.
inline std::size_t utf8_length(std::string_view text) {
  const auto at = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](std::size_t i) { return at(i) >= 0x80 && at(i) < 0xc0; };
  const unsigned first = at(0);
  if (first < 0x80) return text.empty() ? 0 : 1;
  if (first >= 0xc2 && first < 0xe0) return follows(1) ? 2 : 0;
  if (first >= 0xe0 && first < 0xf0) {
    const bool sound = first == 0xe0   ? at(1) >= 0xa0
                       : first == 0xed ? at(1) < 0xa0
                                       : true;  // neither overlong nor a surrogate
    return sound && follows(1) && follows(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first < 0xf5) {
    const bool sound = first == 0xf0 ? at(1) >= 0x90 : first == 0xf4 ? at(1) < 0x90 : true;
    return sound && follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const auto length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

// Each byte that is no part of UTF-8, and NUL, as \xff: the backslash, x and two hexadecimal digits.
inline std::string as_utf8(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    std::size_t length = text[0] == '\0' ? 0 : utf8_length(text);
    if (length == 0) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned char>(text[0]));
      out += escape;
      length = 1;
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace swsl::detail
